#include "../../cells/ind_rnn.h"
#include "../instantiate.cuh"

FASTRNN_INSTANTIATE(fastrnn::IndRnn)
