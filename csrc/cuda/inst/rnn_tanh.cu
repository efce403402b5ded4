#include "../../cells/rnn.h"
#include "../instantiate.cuh"

FASTRNN_INSTANTIATE(fastrnn::RnnTanh)
