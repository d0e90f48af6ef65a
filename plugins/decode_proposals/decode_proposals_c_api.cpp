#include "plugins/common/c_api.h"
#include "plugins/decode_proposals/decode_proposals_kernel.h"

using namespace maskrcnn;

MASKRCNN_ARGUMENTS(DecodeProposalsArguments);

MASKRCNN_EXPORT size_t maskrcnn_decode_proposals_workspace_size(const DecodeProposalsArguments* arguments) {
  return decode_proposals_workspace_size(*arguments);
}

MASKRCNN_EXPORT int maskrcnn_decode_proposals(const DecodeProposalsArguments* arguments, void* workspace,
                                              size_t workspace_size, void* stream) {
  return launch_decode_proposals(*arguments, workspace, workspace_size, static_cast<cudaStream_t>(stream));
}
