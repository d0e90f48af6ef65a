// Marks what a shared library exports. Everything else is hidden.
#pragma once

#define MASKRCNN_EXPORT extern "C" __attribute__((visibility("default")))
