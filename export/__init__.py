"""Checkpoint to bundle: everything that needs torch and transformers.

- `pipeline.export`: the whole way, written aside and renamed at the end;
- `plan`: what can be wrong before any weights are read;
- `checkpoint`, `weights`: a folder or hub repository, its tensors read one at a time;
- `adapter`, `quantized`: what a checkpoint may be instead of plain weights;
- `families`: what is particular to each ``model_type``;
- `vision`: tower, connector and projector to one ONNX graph, in fp32, fp16 and two kinds of int8;
- `calibration`: the images that fix the scales of int8-static;
- `architectures`, `decoder_tensors`, `decoder`, `quantize`: the language model to GGUF;
- `tokenizer`: its vocabulary;
- `given`, `given_vocabulary`: a GGUF file that the user already has;
- `chat_template`, `front_matter`: what is read of a checkpoint beside its weights;
- `parity`: what the bundle answers, beside what transformers answers;
- `card`: the bundle's README.
"""
