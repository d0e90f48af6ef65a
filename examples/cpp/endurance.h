// Whether a detector stays what it is: over many calls, and beside others in other threads.
#pragma once

#include <maskrcnn/detector.h>

#include <string>
#include <utility>
#include <vector>

#include "figures.h"

// What many calls took. `problem`: why there are none.
struct Endurance {
  int calls = 0;
  double milliseconds = 0;
  int unlike = 0;                                // results that were not those of the image's first call
  std::vector<std::pair<int, Figures>> figures;  // after so many calls: ten times, evenly
  std::string problem;
};

// One image a call, the images in turn, their run lengths asked for.
Endurance endure(const maskrcnn::Detector& detector, const std::vector<maskrcnn::Image>& images, int calls);

struct Company {
  int results = 0;  // images that were detected
  int unlike = 0;   // of which the result was not the one that a detector alone had found
  std::string problem;
};

// Detectors of one model, each in a thread: batches of 1 and of `batch`, of other images at the same time.
Company in_company(const std::string& model, const maskrcnn::Options& options,
                   const std::vector<maskrcnn::Image>& images, int batch, int detectors, int rounds);
