"""A ROS 2 node that asks a vision-language model about the newest image of a camera."""
