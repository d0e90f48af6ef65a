/* The library for C, and for every language that calls C. detector.h says what the fields mean and what threads may do.
 *
 *   maskrcnn_detector* detector = NULL;
 *   maskrcnn_error* error = NULL;
 *   if (maskrcnn_open("model.onnx", NULL, &detector, &error) != 0) puts(maskrcnn_error_message(error));
 *
 * Functions that can fail return 0, or one of the codes below and, where `error` is not NULL, an error to be freed.
 * What they return through a pointer is NULL then. Pointers into an object are good until it is freed; freeing NULL
 * does nothing. Strings are UTF-8. Structures are zeroed by the caller: 0 is the default of every field, but for
 * struct_size, which is set.
 */
#ifndef MASKRCNN_C_API_H
#define MASKRCNN_C_API_H

#include <stddef.h>
#include <stdint.h>

#include "maskrcnn/api.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MASKRCNN_OK = 0, MASKRCNN_NOT_FOUND = 1, MASKRCNN_INVALID = 2, MASKRCNN_FAILED = 3 };

typedef struct maskrcnn_detector maskrcnn_detector;
typedef struct maskrcnn_pending maskrcnn_pending;
typedef struct maskrcnn_results maskrcnn_results; /* of every image of a call */
typedef struct maskrcnn_error maskrcnn_error;

typedef struct maskrcnn_options {
  uint64_t struct_size; /* sizeof(maskrcnn_options): of an older header, the fields that it has */
  int32_t batch_size;   /* 0: a call's images in one batch */
  int32_t threads;      /* 0: one per physical core */
  int32_t bf16;         /* 1: floats in bfloat16 */
  int32_t streams;      /* 0: 1 */
  int32_t sizes;        /* 0: 4; -1: none */
  int32_t device_index;
  int32_t no_cuda_graphs;
  const char* cache;   /* NULL: none */
  const char* plugins; /* NULL: $MASKRCNN_PLUGINS, or the one beside the library */
  const char* backend; /* NULL: by the file */
} maskrcnn_options;

typedef struct maskrcnn_image {
  const uint8_t* pixels;
  int64_t row_pitch;  /* bytes; 0: width * channels */
  uint64_t num_bytes; /* of the buffer; 0: not checked */
  int32_t height;
  int32_t width;
  int32_t channels;  /* 0: 3 */
  int32_t on_device; /* 1: `pixels` is a device address */
} maskrcnn_image;

/* options: NULL for the defaults. */
MASKRCNN_API int maskrcnn_open(const char* path, const maskrcnn_options* options, maskrcnn_detector** detector,
                               maskrcnn_error** error);
MASKRCNN_API void maskrcnn_detector_free(maskrcnn_detector* detector);

/* stream: a cudaStream_t of TensorRT, or NULL. */
MASKRCNN_API int maskrcnn_detect(const maskrcnn_detector* detector, const maskrcnn_image* images, size_t num_images,
                                 float min_score, void* stream, maskrcnn_results** results, maskrcnn_error** error);
MASKRCNN_API int maskrcnn_submit(const maskrcnn_detector* detector, const maskrcnn_image* images, size_t num_images,
                                 float min_score, void* stream, maskrcnn_pending** pending, maskrcnn_error** error);
/* Once. The pending is still to be freed. */
MASKRCNN_API int maskrcnn_wait(maskrcnn_pending* pending, maskrcnn_results** results, maskrcnn_error** error);
MASKRCNN_API void maskrcnn_pending_free(maskrcnn_pending* pending);

/* The model. Out of range, names are NULL. */
MASKRCNN_API size_t maskrcnn_num_classes(const maskrcnn_detector* detector);
MASKRCNN_API const char* maskrcnn_class_name(const maskrcnn_detector* detector, size_t label);
MASKRCNN_API size_t maskrcnn_num_keypoints(const maskrcnn_detector* detector); /* of a detection */
MASKRCNN_API const char* maskrcnn_keypoint_name(const maskrcnn_detector* detector, size_t index);
MASKRCNN_API const char* maskrcnn_mask_mode(const maskrcnn_detector* detector); /* "crop", "full", "grid", "none" */
MASKRCNN_API const char* maskrcnn_backend(const maskrcnn_detector* detector);   /* with its version */
MASKRCNN_API int maskrcnn_channels(const maskrcnn_detector* detector);          /* of an image that it takes */

/* What was found. Out of range, there are 0 detections, and pointers are NULL. */
MASKRCNN_API size_t maskrcnn_num_images(const maskrcnn_results* results);
MASKRCNN_API size_t maskrcnn_num_detections(const maskrcnn_results* results, size_t image);
MASKRCNN_API const float* maskrcnn_boxes(const maskrcnn_results* results, size_t image);     /* (n, 4) x1 y1 x2 y2 */
MASKRCNN_API const float* maskrcnn_scores(const maskrcnn_results* results, size_t image);    /* (n,) */
MASKRCNN_API const int32_t* maskrcnn_labels(const maskrcnn_results* results, size_t image);  /* (n,) */
MASKRCNN_API const float* maskrcnn_keypoints(const maskrcnn_results* results, size_t image); /* (n, P, 3) x y score */
/* COCO's run lengths as a string, to be freed by maskrcnn_string_free. */
MASKRCNN_API int maskrcnn_rle(const maskrcnn_results* results, size_t image, size_t detection, char** counts,
                              maskrcnn_error** error);
/* Writes the mask at the image's size, 0 or 1 a pixel, rows `row_pitch` bytes apart (0: the image's width). */
MASKRCNN_API int maskrcnn_mask(const maskrcnn_results* results, size_t image, size_t detection, uint8_t* pixels,
                               int64_t row_pitch, maskrcnn_error** error);
MASKRCNN_API void maskrcnn_results_free(maskrcnn_results* results);
MASKRCNN_API void maskrcnn_string_free(char* text);

MASKRCNN_API int maskrcnn_error_code(const maskrcnn_error* error); /* MASKRCNN_OK of NULL */
MASKRCNN_API const char* maskrcnn_error_message(const maskrcnn_error* error); /* never NULL; empty of NULL */
MASKRCNN_API void maskrcnn_error_free(maskrcnn_error* error);

MASKRCNN_API const char* maskrcnn_version(void);
MASKRCNN_API const char* maskrcnn_backends(void);

#ifdef __cplusplus
}
#endif

#endif
