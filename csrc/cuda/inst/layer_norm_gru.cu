#include "../../cells/layer_norm.h"
#include "../norm.cuh"

FASTRNN_INSTANTIATE_NORMED(fastrnn::LayerNormGru)
