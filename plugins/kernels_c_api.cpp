// The launchers as C functions, for plugins/kernels.py: kernels are tested and timed without TensorRT.
#include "plugins/common/export.h"
#include "plugins/decode_detections/decode_detections_kernel.h"
#include "plugins/decode_proposals/decode_proposals_kernel.h"
#include "plugins/grid_sample/grid_sample_kernel.h"
#include "plugins/grouped_nms/grouped_nms_kernel.h"
#include "plugins/multi_level_roi_align/multi_level_roi_align_kernel.h"
#include "plugins/paste_masks/paste_masks_kernel.h"
#include "plugins/select_masks/select_masks_kernel.h"
#include "plugins/select_top/select_top_kernel.h"

using namespace maskrcnn;

// The sizes of the argument structures, which plugins/kernels.py declares again: a mismatch is found when it loads.
MASKRCNN_EXPORT size_t maskrcnn_arguments_size(int op) {
  const size_t sizes[] = {sizeof(GroupedNmsArguments), sizeof(MultiLevelRoiAlignArguments), sizeof(PasteMasksArguments),
                          sizeof(GridSampleArguments), sizeof(SelectTopArguments), sizeof(DecodeDetectionsArguments),
                          sizeof(SelectMasksArguments), sizeof(DecodeProposalsArguments)};
  return op >= 0 && op < 8 ? sizes[op] : 0;
}

MASKRCNN_EXPORT size_t maskrcnn_grouped_nms_workspace_size(int32_t batch, int32_t num_boxes) {
  return grouped_nms_workspace_size(batch, num_boxes);
}

MASKRCNN_EXPORT int maskrcnn_grouped_nms(const GroupedNmsArguments* arguments, void* workspace, size_t workspace_size,
                                         void* stream) {
  return launch_grouped_nms(*arguments, workspace, workspace_size, static_cast<cudaStream_t>(stream));
}

MASKRCNN_EXPORT int maskrcnn_multi_level_roi_align(const MultiLevelRoiAlignArguments* arguments, void* stream) {
  return launch_multi_level_roi_align(*arguments, static_cast<cudaStream_t>(stream));
}

MASKRCNN_EXPORT int maskrcnn_paste_masks(const PasteMasksArguments* arguments, void* stream) {
  return launch_paste_masks(*arguments, static_cast<cudaStream_t>(stream));
}

MASKRCNN_EXPORT int maskrcnn_grid_sample(const GridSampleArguments* arguments, void* stream) {
  return launch_grid_sample(*arguments, static_cast<cudaStream_t>(stream));
}

MASKRCNN_EXPORT size_t maskrcnn_select_top_workspace_size(int32_t batch, int32_t num_scores, int32_t k) {
  return select_top_workspace_size(batch, num_scores, k);
}

MASKRCNN_EXPORT int maskrcnn_select_top(const SelectTopArguments* arguments, void* workspace, size_t workspace_size,
                                        void* stream) {
  return launch_select_top(*arguments, workspace, workspace_size, static_cast<cudaStream_t>(stream));
}

MASKRCNN_EXPORT size_t maskrcnn_decode_proposals_workspace_size(const DecodeProposalsArguments* arguments) {
  return decode_proposals_workspace_size(*arguments);
}

MASKRCNN_EXPORT int maskrcnn_decode_proposals(const DecodeProposalsArguments* arguments, void* workspace,
                                              size_t workspace_size, void* stream) {
  return launch_decode_proposals(*arguments, workspace, workspace_size, static_cast<cudaStream_t>(stream));
}

MASKRCNN_EXPORT int maskrcnn_decode_detections(const DecodeDetectionsArguments* arguments, void* stream) {
  return launch_decode_detections(*arguments, static_cast<cudaStream_t>(stream));
}

MASKRCNN_EXPORT int maskrcnn_select_masks(const SelectMasksArguments* arguments, void* stream) {
  return launch_select_masks(*arguments, static_cast<cudaStream_t>(stream));
}
