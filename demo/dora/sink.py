"""A dora node that prints each answer, a JSON object, on a line of its own."""

from dora import Node


def main() -> None:
    """Print the input ``answer`` until the dataflow stops."""
    for event in Node():
        if event["type"] == "INPUT":
            print(event["value"][0].as_py(), flush=True)


if __name__ == "__main__":
    main()
