#include "../../cells/layer_norm.h"
#include "../instantiate.cuh"

FASTRNN_INSTANTIATE(fastrnn::LayerNormGru)
