// What the library says of an engine on a machine: sidecar_check ENGINE TENSORRT GPU CAPABILITY [PLUGINS_SHA256].
#include <cstdio>

#include "errors.h"
#include "sidecar.h"

int main(int count, char** texts) {
  if (count < 5) return 1;
  maskrcnn::Provenance machine;
  machine.tensorrt = texts[2];
  machine.gpu = texts[3];
  machine.compute_capability = texts[4];
  if (count > 5) machine.plugins_sha256 = texts[5];
  const auto found = maskrcnn::guarded([&] { return maskrcnn::checked_engine(texts[1], machine); });
  if (!found) {
    std::printf("%d %s\n", static_cast<int>(found.error().code), found.error().message.c_str());
    return 2;
  }
  std::printf("0 %zu bytes, %zu classes\n", found.value().data.size(), found.value().metadata.info.classes.size());
  return 0;
}
