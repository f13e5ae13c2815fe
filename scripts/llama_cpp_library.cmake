# Leave out of llama.cpp what edgevlm does not load, and compile the rest in fewer, larger files.
#
# CMake includes this where llama.cpp's own project begins (CMAKE_PROJECT_llama.cpp_INCLUDE). The variable
# hides the cached one that llama-cpp-python forces to ON. ggml cannot be compiled in unity: two of its files
# define the same name. Nor can llama in one file, for the same reason; CMake's default of 8 files works.
set(LLAMA_BUILD_COMMON OFF)
cmake_language(DEFER CALL set_target_properties llama PROPERTIES UNITY_BUILD ON)
