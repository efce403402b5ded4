#include "../../cells/gru.h"
#include "../instantiate.cuh"

FASTRNN_INSTANTIATE(fastrnn::Gru)
