# The TensorRT backend of the C++ library. Headers are enough: libnvinfer, of the same major version, is loaded when the
# first engine is opened, so that a library with both backends runs on machines without TensorRT.
find_path(MASKRCNN_RUNTIME_TENSORRT_INCLUDE NvInferVersion.h HINTS "${TENSORRT_ROOT}/include" "${TENSORRT_ROOT}")
if(NOT MASKRCNN_RUNTIME_TENSORRT_INCLUDE)
  message(FATAL_ERROR "Expected TensorRT's headers (NvInferVersion.h), found none. Set -DTENSORRT_ROOT=... to a folder "
                      "with include/NvInfer.h, or -DMASKRCNN_WITH_TENSORRT=OFF.")
endif()
maskrcnn_tensorrt_version("${MASKRCNN_RUNTIME_TENSORRT_INCLUDE}" tensorrt_version)
if(tensorrt_version VERSION_LESS 8.5)
  message(FATAL_ERROR "Expected TensorRT 8.5 or later, whose tensors have names, found ${tensorrt_version} in "
                      "${MASKRCNN_RUNTIME_TENSORRT_INCLUDE}. Set TENSORRT_ROOT to a later one.")
endif()
find_package(CUDAToolkit REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
message(STATUS "C++ library: TensorRT ${tensorrt_version}, CUDA ${CUDAToolkit_VERSION}")

target_sources(maskrcnn_runtime PRIVATE
               src/plugin_library.cpp
               src/sidecar.cpp
               src/tensorrt_engine.cpp
               src/tensorrt_model.cpp)
target_compile_definitions(maskrcnn_runtime PRIVATE MASKRCNN_WITH_TENSORRT)
target_include_directories(maskrcnn_runtime SYSTEM PRIVATE "${MASKRCNN_RUNTIME_TENSORRT_INCLUDE}")
set_source_files_properties(src/tensorrt_engine.cpp src/tensorrt_model.cpp PROPERTIES
                            COMPILE_OPTIONS -Wno-deprecated-declarations)
# The CUDA runtime is linked statically, so that the library runs beside whichever one the program brought.
target_link_libraries(maskrcnn_runtime PRIVATE $<BUILD_INTERFACE:CUDA::cudart_static> $<BUILD_INTERFACE:OpenSSL::Crypto>
                                               ${CMAKE_DL_LIBS})
target_link_options(maskrcnn_runtime PRIVATE -Wl,--exclude-libs,ALL)
