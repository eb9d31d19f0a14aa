/* A driver to test against: one stream, host memory for the device's, and a line on standard error for what a test wants
 * to see. Copies and fills happen as late as the stream's order permits, so memory that is reused too early shows. What a
 * thread does without the context, and what must not be captured, fails.
 * FAKE_CUDA names what is to go wrong, FAKE_CUDA_VERSION the driver's CUDA version as 1000 major + 10 minor. */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* In one piece, because threads speak at the same time. */
#define SAY(format, ...) fprintf(stderr, "fake: " format "\n", ##__VA_ARGS__)

static int fails(const char *how)
{
    const char *named = getenv("FAKE_CUDA");
    return named && !strcmp(named, how);
}

/* Handles: how many live, so that the context can see that it goes last. */
static _Atomic int live;
static void *made(void *handle)
{
    live++;
    return handle;
}
static void gone(void *handle)
{
    live--;
    free(handle);
}

/* The context of each thread; without it an entry that needs one fails. */
static int context, retained;
static __thread void *current;
#define NEEDS_CONTEXT do { if (current != &context) return 201; } while (0)

/* The stream: copies and fills not yet done, up to the newest. */
struct work { char *to; const char *from; int byte; size_t bytes; };
static struct work queue[4096];
static int queued, passed, nodes = -1;
#define NOT_CAPTURED do { NEEDS_CONTEXT; if (nodes >= 0) return 900; } while (0)

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

static int version(void)
{
    const char *named = getenv("FAKE_CUDA_VERSION");
    return named ? atoi(named) : 12020;
}

int cuDriverGetVersion(int *is) { return *is = version(), 0; }
int cuInit(unsigned flags) { return flags ? 1 : fails("no device") ? 100 : fails("stub") ? 34 : fails("new code") ? 917 : 0; }

/* With a broken device there are two, of which the first does not answer. */
int cuDeviceGetCount(int *count) { return *count = fails("broken device") ? 2 : 1, 0; }
int cuDeviceGet(int *device, int index)
{
    int count;
    cuDeviceGetCount(&count);
    return *device = index, index < count ? 0 : 101;
}
int cuDeviceGetName(char *name, int len, int device) { return snprintf(name, len, "Fake %d", device), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)3 << 30, device < 0; }

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
    return fails("broken device") && !device ? 214 : 0;
}

int cuDevicePrimaryCtxRetain(void **ctx, int device) { return *ctx = &context, retained++, device < 0; }
int cuDevicePrimaryCtxRelease_v2(int device)
{
    if (!--retained)
        SAY("context released with %d handles", live);
    return device < 0;
}
int cuCtxSetCurrent(void *ctx) { return ctx == &context ? current = ctx, 0 : 201; }

int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority)
{
    NEEDS_CONTEXT;
    return *stream = made(malloc(1)), flags || priority;
}
int cuStreamDestroy_v2(void *stream) { return gone(stream), 0; }
int cuStreamSynchronize(void *stream)
{
    NOT_CAPTURED;
    return stream ? (pass(queued), fails("lost") ? 700 : 0) : 400;
}

int cuEventCreate(int **event, unsigned flags)
{
    NEEDS_CONTEXT;
    return *event = made(calloc(2, sizeof(int))), (*event)[1] = flags, 0;
}
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
    NOT_CAPTURED;
    if (bytes >> 30)
        return 2;
    return *at = (uint64_t)made(malloc(bytes)), 0;
}
int cuMemFree_v2(uint64_t at) { return pass(queued), gone((void *)at), 0; }
int cuMemAllocHost_v2(void **at, size_t bytes) { return lock(*at = malloc(bytes), bytes), 0; }
int cuMemFreeHost(void *at) { return unlock(at), memset(at, 0xdd, 1), free(at), 0; }
int cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags)
{
    NOT_CAPTURED;
    if (flags != 8 || fails("no pages"))
        return 801;
    return lock(at, bytes), SAY("locked %zu bytes", bytes), 0;
}
int cuMemHostUnregister(void *at) { return unlock(at), 0; }

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream)
{
    NOT_CAPTURED;
    enqueue(to, from, 0, bytes);
    if (!is_locked(from, bytes))
        pass(queued);
    return stream ? 0 : 400;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream)
{
    NOT_CAPTURED;
    return enqueue((uint64_t)to, (const void *)from, 0, bytes), stream ? 0 : 400;
}
int cuMemsetD8Async(uint64_t at, unsigned char byte, size_t bytes, void *stream)
{
    return enqueue(at, NULL, byte, bytes), stream ? 0 : 400;
}

/* The newest PTX, as 10 major + minor, that a driver of this version compiles. */
static int newest_ptx(void)
{
    int major = version() / 1000, minor = version() % 1000 / 10;
    return major == 11 ? 70 + minor : major == 12 ? 80 + minor - (minor > 5) : 10 * (major - 4) + minor;
}

/* Waits, as a compiler works, until another thread compiles too, but not for ever. */
static void compile(void)
{
    static _Atomic int working, met;
    SAY("compiled");
    if (++working > 1)
        met = 1;
    for (int i = 0; i < 2000 && !met; i++)
        usleep(1000);
    if (!met)
        SAY("compiled alone");
    working--;
}

int cuModuleLoadDataEx(void **module, const char *text, unsigned count, const int *options, void **values)
{
    NOT_CAPTURED;
    const char *claim = strstr(text, ".version ");
    if (!claim || 10 * (claim[9] - '0') + claim[11] - '0' > newest_ptx()) {
        if (count == 2 && options[0] == 5 && options[1] == 6)
            snprintf(values[0], (size_t)values[1], "ptxas fatal: Unsupported .version\n");
        return 222;
    }
    if (fails("slow compiler"))
        compile();
    return *module = made(strdup(text)), 0;
}
int cuModuleUnload(void *module) { return gone(module), 0; }
int cuModuleGetFunction(void **function, void *module, const char *name)
{
    NEEDS_CONTEXT;
    return *function = strstr(module, name), *function ? 0 : 500;
}
int cuFuncGetAttribute(int *value, int attribute, void *function)
{
    static const int values[] = {1024, 256, 0, 8, 40};
    return *value = (unsigned)attribute < 5 ? values[attribute] : 0, function ? 0 : 400;
}

/* Dynamic shared memory that a function may take: what was set last. */
static struct { void *function; unsigned bytes; } allowed[64];

static unsigned shared_of(void *function)
{
    for (int i = 0; i < 64; i++)
        if (allowed[i].function == function)
            return allowed[i].bytes;
    return 48 << 10;
}

int cuFuncSetAttribute(void *function, int attribute, int value)
{
    int i = 0;
    while (allowed[i].function && allowed[i].function != function)
        if (++i == 64)
            abort();
    allowed[i].function = function, allowed[i].bytes = value;
    return SAY("%.8s: attribute %d is %d", (char *)function, attribute, value), 0;
}

int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **params, void **extra)
{
    NEEDS_CONTEXT;
    if (fails("lost"))
        return 700;
    if (shared > shared_of(f))
        return 1;
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
