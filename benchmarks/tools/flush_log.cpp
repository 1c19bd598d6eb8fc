// llama.cpp's tools leave without waiting for the thread that prints their log, and at times without its last lines.
#include "log.h"

#include <cstdlib>

static const int registered = std::atexit([] { common_log_pause(common_log_main()); });
