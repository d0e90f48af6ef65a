/* What both headers share: the version, and what the shared library exports. */
#ifndef MASKRCNN_API_H
#define MASKRCNN_API_H

#define MASKRCNN_VERSION_MAJOR 0
#define MASKRCNN_VERSION_MINOR 1
#define MASKRCNN_VERSION_PATCH 0

#if defined(MASKRCNN_STATIC)
#define MASKRCNN_API
#else
#define MASKRCNN_API __attribute__((visibility("default")))
#endif

#endif
