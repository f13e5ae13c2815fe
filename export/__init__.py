"""Checkpoint to bundle: everything that needs torch and transformers.

- `pipeline.export`: the whole way, written aside and renamed at the end;
- `checkpoint`: a folder or hub repository, its tensors read one at a time;
- `families`: what is particular to each ``model_type``;
- `vision`: tower, connector and projector to one ONNX graph, in fp32, fp16 and two kinds of int8;
- `decoder`, `tokenizer`, `quantize`: language model and vocabulary to GGUF;
- `parity`: what the bundle answers, beside what transformers answers;
- `card`: the bundle's README.
"""
