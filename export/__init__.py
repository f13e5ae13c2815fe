"""Checkpoint to bundle: everything that needs torch and transformers.

- `pipeline.export`: all steps; writes to a temporary folder and renames it at the end;
- `plan`: checks before any weights are read;
- `checkpoint`, `weights`: a folder or hub repository, its tensors read one at a time;
- `adapter`, `quantized`: refuse checkpoints that are not plain weights;
- `families`: the differences between ``model_type``s; `model_types`: advice about all others;
- `vision`: tower, connector and projector to one ONNX graph, in fp32 and fp16;
- `products`, `vision_quantization`, `attention`: the same graph in int8 and int4;
- `calibration`: the images that it is fitted to;
- `architectures`, `decoder_tensors`, `decoder`, `quantize`: the language model to GGUF;
- `tokenizer`, `pre_tokenizers`: its vocabulary, and how text is normalized and split;
- `tokenizer_file`: the same for decoders without llama.cpp;
- `text_battery`: compares its token ids with transformers on thousands of texts;
- `existing_gguf`, `existing_vocabulary`: a GGUF file that the user already has;
- `chat_template`, `front_matter`: read the chat template and the model card;
- `parity`: compares the bundle with transformers;
- `card`: the bundle's README.
"""
