"""The node: parameters, topics and states of ROS 2 around a `FrameWatcher`."""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from edgevlm import VLM, EdgeVLMError, InputError
from edgevlm_ros.frame_watcher import FrameWatcher, Status

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

NEWEST_IMAGE = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
"""An image that is lost is not sent again: a newer one comes."""

STATUS_SECONDS = 1.0
"""Between two diagnostics messages, if nothing happens."""

LEVELS = {
    "ok": DiagnosticStatus.OK,
    "warning": DiagnosticStatus.WARN,
    "error": DiagnosticStatus.ERROR,
}

PARAMETERS = {
    "model": (Parameter.Type.STRING, "built-in model, folder of a bundle or hub repository"),
    "question": (Parameter.Type.STRING, "text after each image; the topic ~/question changes it"),
    "choices": (Parameter.Type.STRING_ARRAY, "labels, one of which is the answer"),
    "schema": (Parameter.Type.STRING, "JSON schema that each answer keeps to, as text"),
    "max_age": (Parameter.Type.DOUBLE, "age in seconds above which an image is not answered"),
    "within": (Parameter.Type.DOUBLE, "seconds for one answer"),
    "every": (Parameter.Type.DOUBLE, "seconds between two answers"),
    "min_change": (Parameter.Type.DOUBLE, "skip images that changed less, 0 to 1"),
    "detail": (Parameter.Type.STRING, "auto, low or high"),
    "max_tokens": (Parameter.Type.INTEGER, "limit of an answer"),
    "threads": (Parameter.Type.INTEGER, "processor threads of the model"),
    "image_topic": (Parameter.Type.STRING, "topic of the camera"),
    "compressed": (Parameter.Type.BOOL, "the topic has sensor_msgs/CompressedImage"),
    "autostart": (Parameter.Type.BOOL, "configure and activate at the start"),
}
"""Type and description. A parameter that is not given has the value that edgevlm gives it."""

DEFAULTS = {
    "model": "edgevlm-nano",
    "question": "What is in the picture?",
    "image_topic": "image",
    "compressed": False,
    "autostart": True,
}

WATCH_OPTIONS = ("choices", "max_age", "within", "every", "min_change", "detail", "max_tokens")


class WatchNode(LifecycleNode):
    """Publishes answers about the newest image on ``~/answer``, and diagnostics on ``/diagnostics``."""

    def __init__(self) -> None:
        super().__init__("edgevlm")
        for name, (kind, description) in PARAMETERS.items():
            descriptor = ParameterDescriptor(description=description, read_only=True)
            self.declare_parameter(name, DEFAULTS.get(name, kind), descriptor)
        self._vlm: VLM | None = None
        self._watcher: FrameWatcher | None = None
        self._active_subscriptions: list[Any] = []
        self._status_timer: Any = None
        self._answers = self.create_lifecycle_publisher(String, "~/answer", 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model."""
        try:
            self._vlm = VLM.from_pretrained(self._value("model"), threads=self._value("threads"))
        except EdgeVLMError as error:
            self.get_logger().error(f"the model cannot be loaded: {error}")
            return FAILURE
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and begin to answer."""
        assert self._vlm is not None
        super().on_activate(state)  # the publisher
        topic = self.resolve_topic_name(self._value("image_topic"))
        try:
            self._watcher = FrameWatcher(
                self._vlm,
                self._value("question"),
                self._watch_options(),
                on_answer=self._publish_answer,
                on_status=self._tell_status,
                name=topic,
            )
        except EdgeVLMError as error:
            self.get_logger().error(f"a parameter is wrong: {error}")
            return FAILURE
        kind = CompressedImage if self._value("compressed") else Image
        self._active_subscriptions = [
            self.create_subscription(kind, topic, self._put, NEWEST_IMAGE),
            self.create_subscription(String, "~/question", self._ask, 10),
        ]
        self._status_timer = self.create_timer(STATUS_SECONDS, self._publish_current_status)
        self.get_logger().info(f"asks about {topic}: {self._value('question')}")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to answer; the model stays in memory."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        self.close()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to answer, and free the model."""
        self.close()
        return SUCCESS

    def close(self) -> None:
        """Stop to answer, and free the model. May be called again."""
        self._stop()
        if self._vlm is not None:
            self._vlm.close()
            self._vlm = None

    def _stop(self) -> None:
        for subscription in self._active_subscriptions:
            self.destroy_subscription(subscription)
        self._active_subscriptions = []
        if self._status_timer is not None:
            self.destroy_timer(self._status_timer)
            self._status_timer = None
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _value(self, name: str) -> Any:
        """Return the value of a parameter; None if it was not given."""
        return self.get_parameter_or(name).value

    def _watch_options(self) -> dict[str, Any]:
        """Return the arguments of `VLM.watch`.

        Raises:
            InputError: the schema is not JSON.
        """
        options = {name: self._value(name) for name in WATCH_OPTIONS}
        if (schema := self._value("schema")) is not None:
            try:
                options["schema"] = json.loads(schema)
            except ValueError as error:
                raise InputError(f"the parameter schema is not JSON: {error}") from error
        return {name: value for name, value in options.items() if value is not None}

    def _put(self, message: Image | CompressedImage) -> None:
        stamp = message.header.stamp
        if self._watcher is not None:
            self._watcher.put(
                message, stamp.sec + stamp.nanosec / 1e9, self.get_clock().now().nanoseconds / 1e9
            )

    def _ask(self, message: String) -> None:
        if self._watcher is not None:
            try:
                self._watcher.ask(message.data)
            except EdgeVLMError as error:
                self.get_logger().warning(f"the question {message.data!r} is not asked: {error}")

    def _publish_answer(self, answer: dict[str, Any]) -> None:
        self._answers.publish(String(data=json.dumps(answer, ensure_ascii=False)))

    def _tell_status(self, status: Status) -> None:
        if status.level == "ok":
            self.get_logger().info(status.message)
        else:
            self.get_logger().warning(status.message)
        self._publish_status(status)

    def _publish_current_status(self) -> None:
        if self._watcher is not None:
            self._publish_status(self._watcher.status())

    def _publish_status(self, status: Status) -> None:
        values = [KeyValue(key=name, value=str(value)) for name, value in status.values.items()]
        one = DiagnosticStatus(
            level=LEVELS[status.level],
            name=f"{self.get_name()}: answers",
            message=status.message,
            hardware_id=self._value("model"),
            values=values,
        )
        message = DiagnosticArray(status=[one])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def main() -> int:
    """Run the node until SIGINT or SIGTERM; return the exit code."""
    # Own handlers, so that the node can still publish and change its state at the end.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        node = WatchNode()
    except InvalidParameterTypeException as error:
        print(
            f"edgevlm: {error}; YAML reads yes and no as truth values: quote them", file=sys.stderr
        )
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.get_parameter("autostart").value and not (
            node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
        ):
            return 1
        while not stopped.is_set():
            executor.spin_once(timeout_sec=0.1)
        return 0
    finally:
        node.trigger_shutdown()
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
