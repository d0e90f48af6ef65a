/* The C header in C99: opens a model, detects in a grey image and prints what there is. from_c MODEL HEIGHT WIDTH */
#include <maskrcnn/c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(maskrcnn_error* error) {
  fprintf(stderr, "%d %s\n", maskrcnn_error_code(error), maskrcnn_error_message(error));
  maskrcnn_error_free(error);
  return 2;
}

int main(int count, char** texts) {
  maskrcnn_detector* detector = NULL;
  maskrcnn_results* results = NULL;
  maskrcnn_error* error = NULL;
  maskrcnn_options options;
  maskrcnn_image image;
  uint8_t* pixels = NULL;
  size_t num_bytes, i;
  int status = 0;
  if (count != 4) return 1;
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  options.threads = 1;
  if (maskrcnn_open(texts[1], &options, &detector, &error) != MASKRCNN_OK) return fail(error);
  memset(&image, 0, sizeof image);
  image.height = (int32_t)atoi(texts[2]);
  image.width = (int32_t)atoi(texts[3]);
  num_bytes = (size_t)image.height * (size_t)image.width * 3;
  pixels = malloc(num_bytes);
  if (pixels == NULL) return 1;
  memset(pixels, 200, num_bytes);
  image.pixels = pixels;
  if (maskrcnn_detect(detector, &image, 1, 0.3f, NULL, &results, &error) != MASKRCNN_OK) status = fail(error);
  for (i = 0; status == 0 && i < maskrcnn_num_detections(results, 0); ++i) {
    const float* box = maskrcnn_boxes(results, 0) + 4 * i;
    const char* name = maskrcnn_class_name(detector, (size_t)maskrcnn_labels(results, 0)[i]);
    printf("%s %.3f %.2f %.2f %.2f %.2f\n", name, maskrcnn_scores(results, 0)[i], box[0], box[1], box[2], box[3]);
  }
  free(pixels);
  maskrcnn_results_free(results);
  maskrcnn_detector_free(detector);
  return status;
}
