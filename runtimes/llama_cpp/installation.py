"""The version of llama-cpp-python that edgevlm uses, and the commands that install it, for error messages."""

LLAMA_CPP_PYTHON_VERSION = "0.3.36"
"""The only version that edgevlm uses: the structures of llama.cpp's C API change between releases."""

INSTALL_LLAMA = "pip install 'edgevlm[llama]'"
"""Command that installs what decoders in GGUF files need."""

INSTALL_LLAMA_CPP = f"pip install 'llama-cpp-python=={LLAMA_CPP_PYTHON_VERSION}'"
"""Command that installs this version alone."""

REBUILD_LLAMA_CPP = f"{INSTALL_LLAMA_CPP} --force-reinstall --no-deps --no-cache-dir"
"""Command that compiles it again."""

BUILD_WITH_CUDA = f"CMAKE_ARGS=-DGGML_CUDA=on {REBUILD_LLAMA_CPP}"
"""Command that compiles it for NVIDIA's GPUs."""

REBUILD_ADVICE = (
    f"build it again with clang, CC=clang CXX=clang++ {REBUILD_LLAMA_CPP}, or without AMX, "
    "CMAKE_ARGS='-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__' "
    f"{REBUILD_LLAMA_CPP}"
)
"""The fix for a build that crashes."""
