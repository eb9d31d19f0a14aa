/* A driver to test against: one stream, host memory for the device's, and a line on standard error for what a test wants
 * to see. Copies and fills happen as late as the stream's order permits, so memory that is reused too early shows.
 * FAKE_CUDA names what is to go wrong. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAY(...) (fprintf(stderr, "fake: " __VA_ARGS__), fputc('\n', stderr))

static int fails(const char *how)
{
    const char *named = getenv("FAKE_CUDA");
    return named && !strcmp(named, how);
}

/* Handles: how many live, so that the context can see that it goes last. */
static int live;
static void *made(void *handle) { return live++, handle; }
static void gone(void *handle) { live--, free(handle); }

/* The stream: copies and fills not yet done, up to the newest. */
struct work { char *to; const char *from; int byte; size_t bytes; };
static struct work queue[4096];
static int queued, passed, nodes = -1;

static void pass(int until)
{
    for (; passed < until; passed++) {
        struct work *w = &queue[passed];
        if (w->from)
            memcpy(w->to, w->from, w->bytes);
        else
            memset(w->to, w->byte, w->bytes);
    }
}

static int enqueue(uint64_t to, const void *from, int byte, size_t bytes)
{
    if (queued == 4096)
        abort();
    queue[queued++] = (struct work){(char *)to, from, byte, bytes};
    return 0;
}

/* Host memory that the device may read late: page-locked buffers and locked pages. */
static struct { uintptr_t at; size_t bytes; } locked[64];

static int is_locked(const void *at, size_t bytes)
{
    for (int i = 0; i < 64; i++)
        if ((uintptr_t)at >= locked[i].at && (uintptr_t)at + bytes <= locked[i].at + locked[i].bytes)
            return 1;
    return 0;
}

static void lock(void *at, size_t bytes)
{
    for (int i = 0; i < 64; i++)
        if (!locked[i].bytes) {
            locked[i].at = (uintptr_t)at, locked[i].bytes = bytes, live++;
            return;
        }
    abort();
}

static void unlock(void *at)
{
    for (int i = 0; i < 64; i++)
        if (locked[i].at == (uintptr_t)at && locked[i].bytes) {
            locked[i].bytes = 0, live--;
            return;
        }
    abort();
}

int cuDriverGetVersion(int *version) { return *version = fails("old driver") ? 11020 : 12020, 0; }
int cuInit(unsigned flags) { return flags ? 1 : fails("no device") ? 100 : fails("stub") ? 34 : fails("new code") ? 917 : 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int index) { return *device = index, index ? 101 : 0; }
int cuDeviceGetName(char *name, int len, int device) { return snprintf(name, len, "Fake %d", device), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)3 << 30, device; }

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    switch (attribute) {
    case 75: *value = fails("old device") ? 7 : 9; break;
    case 76: *value = fails("old device") ? 5 : 0; break;
    case 16: *value = 132; break;
    case 97: *value = 100 << 10; break;
    case 113: *value = !fails("no locks"); break;
    default: return 1;
    }
    return device;
}

static int context;
int cuDevicePrimaryCtxRetain(void **ctx, int device) { return *ctx = &context, device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return SAY("context released with %d handles", live), device; }
int cuCtxSetCurrent(void *ctx) { return ctx == &context ? 0 : 201; }

int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority)
{
    return *stream = made(malloc(1)), flags || priority;
}
int cuStreamDestroy_v2(void *stream) { return gone(stream), 0; }
int cuStreamSynchronize(void *stream) { return stream ? (pass(queued), fails("lost") ? 700 : 0) : 400; }

int cuEventCreate(int **event, unsigned flags) { return *event = made(calloc(2, sizeof(int))), (*event)[1] = flags, 0; }
int cuEventRecord(int *event, void *stream) { return *event = queued, stream ? 0 : 400; }
int cuEventSynchronize(int *event) { return pass(*event), 0; }
int cuEventDestroy_v2(int *event) { return gone(event), 0; }
int cuEventElapsedTime(float *ms, int *from, int *to)
{
    return *ms = *to - *from, from[1] & 2 || to[1] & 2 ? 400 : 0;
}

int cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = 1000, *total = (size_t)3 << 30, 0; }
int cuMemAlloc_v2(uint64_t *at, size_t bytes)
{
    if (bytes >> 30)
        return 2;
    return *at = (uint64_t)made(malloc(bytes)), 0;
}
int cuMemFree_v2(uint64_t at) { return pass(queued), gone((void *)at), 0; }
int cuMemAllocHost_v2(void **at, size_t bytes) { return lock(*at = malloc(bytes), bytes), 0; }
int cuMemFreeHost(void *at) { return unlock(at), memset(at, 0xdd, 1), free(at), 0; }
int cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags)
{
    if (flags != 8 || fails("no pages"))
        return 801;
    return lock(at, bytes), SAY("locked %zu bytes", bytes), 0;
}
int cuMemHostUnregister(void *at) { return unlock(at), 0; }

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream)
{
    enqueue(to, from, 0, bytes);
    if (!is_locked(from, bytes))
        pass(queued);
    return stream ? 0 : 400;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream)
{
    return enqueue((uint64_t)to, (const void *)from, 0, bytes), stream ? 0 : 400;
}
int cuMemsetD8Async(uint64_t at, unsigned char byte, size_t bytes, void *stream)
{
    return enqueue(at, NULL, byte, bytes), stream ? 0 : 400;
}

int cuModuleLoadDataEx(void **module, const char *text, unsigned count, const int *options, void **values)
{
    if (fails("old compiler")) {
        if (count == 2 && options[0] == 5 && options[1] == 6)
            snprintf(values[0], (size_t)values[1], "ptxas fatal: Unsupported .version\n");
        return 222;
    }
    return *module = made(strdup(text)), 0;
}
int cuModuleUnload(void *module) { return gone(module), 0; }
int cuModuleGetFunction(void **function, void *module, const char *name)
{
    return *function = strstr(module, name), *function ? 0 : 500;
}
int cuFuncSetAttribute(void *function, int attribute, int value)
{
    return SAY("%.8s: attribute %d is %d", (char *)function, attribute, value), 0;
}

int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **params, void **extra)
{
    if (fails("lost"))
        return 700;
    if (nodes >= 0)
        nodes++;
    uint64_t args[3];
    memcpy(args, params[0], sizeof args);
    SAY("%.10s: grid %u %u %u, block %u %u %u, shared %u, %s, args %lu %lu %lu%s", (char *)f, gx, gy, gz, bx, by, bz, shared,
        stream ? "our stream" : "no stream", args[0], args[1], args[2], extra ? ", extra" : "");
    return 0;
}

int cuStreamBeginCapture_v2(void *stream, int mode) { return nodes = 0, stream && mode == 1 ? 0 : 400; }
int cuStreamEndCapture(void *stream, int **graph)
{
    *graph = made(malloc(sizeof **graph)), **graph = nodes, nodes = -1;
    return SAY("captured %d", **graph), stream ? 0 : 400;
}
int cuGraphInstantiateWithFlags(int **exec, const int *graph, unsigned long long flags)
{
    *exec = made(malloc(sizeof **exec)), **exec = *graph;
    return flags ? 1 : 0;
}
int cuGraphDestroy(int *graph) { return gone(graph), 0; }
int cuGraphLaunch(int *exec, void *stream) { return SAY("replayed %d", *exec), stream ? 0 : 400; }
int cuGraphExecDestroy(int *exec) { return gone(exec), 0; }

/* Entries that the runtime does not use, for the argument lists that are hard to forward. */
struct words { uint64_t at[8]; };
int cuIpcOpenMemHandle_v2(uint64_t *at, struct words handle, unsigned flags)
{
    *at = flags;
    for (int i = 0; i < 8; i++)
        *at = *at * 10 + handle.at[i];
    return 0;
}
int cuTexRefSetMipmapLevelClamp(void *texture, float min, float max) { return texture && min == 1.5f && max == 2.5f ? 0 : 1; }
