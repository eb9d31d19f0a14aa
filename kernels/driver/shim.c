/* A stand-in for libcuda: every entry point of the driver, forwarded to the real library if this machine has one.
 *
 * Programs linked with this archive start everywhere. The first call opens the driver; without one every entry answers
 * CUDA_ERROR_NO_DEVICE, and an entry that an old driver lacks answers CUDA_ERROR_NOT_FOUND.
 *
 * No prototypes are needed. Under the calling conventions of 64-bit Linux on x86-64 and AArch64 an integer, a pointer or
 * a piece of a structure occupies one register or one stack word, in order; so an entry takes fourteen words, as many as
 * the longest argument list fills (six registers and a structure of eight words), and passes them on. Words beyond the
 * caller's arguments hold whatever lies there, and the driver does not look at them. Floats travel in registers of their
 * own; the three entries that take some are declared so.
 *
 * Results are filtered: the bindings hold them in a Rust enum, for which a code that it does not list would be undefined
 * behaviour. A code newer than the bindings becomes CUDA_ERROR_UNKNOWN. */
#define NO_DEVICE 100
#define NOT_FOUND 500
#define UNKNOWN 999

/* Before each path of the driver; a test puts a folder there. */
#ifndef ROOT
#define ROOT ""
#endif

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__)) && defined(__LP64__)

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

/* Hidden: the driver must never find these in place of its own. */
#pragma GCC visibility push(hidden)

#define WORDS(with) with(a), with(b), with(c), with(d), with(e), with(f), with(g), with(h), with(i), with(j), with(k), \
    with(l), with(m), with(n)
#define DECLARED(x) long x
#define PASSED(x) x
typedef int word_entry(WORDS(DECLARED));
typedef int float_entry(long a, long b, float x, float y);

enum slot {
#define ENTRY(name) slot_##name,
#define FLOAT_ENTRY ENTRY
#include "entries.h"
#undef ENTRY
    slots,
};

static const char *const names[slots] = {
#define ENTRY(name) #name,
#include "entries.h"
#undef ENTRY
#undef FLOAT_ENTRY
};

static void *library;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic(void *) found[slots];

static int no_device(void) { return NO_DEVICE; }
static int no_entry(void) { return NOT_FOUND; }

static void open_library(void)
{
    /* By name first; then where WSL and the images of container services put it without telling the loader. */
    static const char *const paths[] = {
        ROOT "libcuda.so.1", ROOT "libcuda.so", ROOT "/usr/lib/wsl/lib/libcuda.so.1",
        ROOT "/usr/local/nvidia/lib64/libcuda.so.1",
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths && !library; i++)
        library = dlopen(paths[i], RTLD_NOW | RTLD_LOCAL);
}

/* The driver's function for a slot. Threads that race here find the same address. */
static __attribute__((noinline)) void *find(enum slot slot)
{
    pthread_once(&once, open_library);
    void *entry = library ? dlsym(library, names[slot]) : (void *)no_device;
    if (!entry)
        entry = (void *)no_entry;
    atomic_store_explicit(&found[slot], entry, memory_order_release);
    return entry;
}

static inline void *at(enum slot slot)
{
    void *entry = atomic_load_explicit(&found[slot], memory_order_acquire);
    return entry ? entry : find(slot);
}

/* `code` if the bindings list it. */
static int listed(int code)
{
    switch (code) {
    case 0 ... 8: case 34: case 100 ... 102: case 200 ... 202: case 205 ... 224: case 300 ... 304: case 400: case 401:
    case NOT_FOUND: case 600: case 700 ... 705: case 708 ... 720: case 800 ... 809: case 900 ... 911:
        return code;
    default:
        return UNKNOWN;
    }
}

#define ENTRY(name) \
    int name(WORDS(DECLARED)) { return listed(((word_entry *)at(slot_##name))(WORDS(PASSED))); }
#define FLOAT_ENTRY(name) \
    int name(long a, long b, float x, float y) { return listed(((float_entry *)at(slot_##name))(a, b, x, y)); }
#include "entries.h"

#else

/* Elsewhere there is no driver to open. */
#define ENTRY(name) int name(void) { return NO_DEVICE; }
#define FLOAT_ENTRY ENTRY
#include "entries.h"

#endif
