//! After bind and a warm-up, a model call allocates nothing: on any thread of its pool, window refills included.
//!
//! The allocator counts on the threads of this test's own pools alone, so that tests beside it are not counted.

use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::exec::Executor;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Attention, Op, QuantizeRange, Role};
use common::networks::{CHANNELS, conditioned, spatial};
use common::{inputs, normal};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting what the threads of a pool allocate.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every method passes its arguments on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WATCHED.get() {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn calls_allocate_nothing() {
    const CALLS: usize = 3;
    let mut rng = fastrand::Rng::with_seed(1);
    let small = inputs([2, 6, 10, CHANNELS], || normal(&mut rng));
    let large = inputs([1, 18, 22, CHANNELS], || normal(&mut rng));
    let mut int8 = spatial();
    for node in &mut int8.program.nodes {
        if let Op::Attention(Attention { attend, .. }) = &mut node.op {
            attend.int8 = true;
        }
    }
    let conditioned = conditioned(|_| QuantizeRange::Dynamic);
    for (build, inputs) in [(conditioned, &small), (spatial(), &small), (spatial(), &large), (int8, &large)] {
        let model = build.open([inputs.dims.height, inputs.dims.width]);
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.broadcast(|_| WATCHED.set(true));
            pool.install(|| {
                let cpu = Cpu::new(Scalar);
                // No budget for tables: every call opens a window of its own.
                let shape = Binding { dims: inputs.dims, calls: CALLS, table_bytes: 0, reserve: 0 };
                let mut executor = Executor::new(&cpu, &model, Role::Denoiser, shape).unwrap();
                executor.set_class_labels(&inputs.labels).unwrap();
                executor.set_timesteps((0..CALLS).map(|t| t as f32)).unwrap();
                executor.write_sample(&inputs.sample).unwrap();
                let mut sweep = || {
                    let before = COUNT.load(Ordering::Relaxed);
                    (0..CALLS).for_each(|call| executor.call(call).unwrap());
                    COUNT.load(Ordering::Relaxed) - before
                };
                // The thread pool itself allocates when one of its threads first takes work from another, which a
                // warm-up cannot force; what a call allocates, every sweep allocates.
                let counts: Vec<usize> = (0..4).map(|_| sweep()).collect();
                assert!(counts.contains(&0), "allocations on {threads} threads: {counts:?}");
            });
        }
    }
    assert!(COUNT.load(Ordering::Relaxed) > 100, "the counter counts");
}
