//! After bind and one warm-up, a model call allocates nothing: on any thread of its pool, window refills included.

mod common;

use aquatint::backend::cpu::Cpu;
use aquatint::backend::cpu::simd::scalar::Scalar;
use aquatint::exec::Executor;
use aquatint::plan::Shape;
use aquatint::program::{QuantizeRange, Role};
use common::networks::{CHANNELS, conditioned, spatial};
use common::{inputs, normal};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting. This file has a single test, so that nothing else is counted.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every method passes its arguments on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
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
    const CALLS: usize = 6;
    let mut rng = fastrand::Rng::with_seed(1);
    let small = inputs([2, 6, 10, CHANNELS], || normal(&mut rng));
    let large = inputs([1, 30, 34, CHANNELS], || normal(&mut rng));
    for (build, inputs) in [(conditioned(|_| QuantizeRange::Dynamic), &small), (spatial(), &small), (spatial(), &large)]
    {
        let model = build.open([inputs.dims.height, inputs.dims.width]);
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut cpu = Cpu::new(Scalar);
                // No budget for tables: every call opens a window of its own.
                let shape = Shape { dims: inputs.dims, calls: CALLS, table_bytes: 0, reserve: 0 };
                let mut executor = Executor::bind(&mut cpu, &model, Role::Denoiser, shape).unwrap();
                executor.set_class_labels(&inputs.labels).unwrap();
                executor.set_timesteps((0..CALLS).map(|t| t as f32)).unwrap();
                executor.write_sample(&inputs.sample);
                executor.call(0);
                let before = COUNT.load(Ordering::Relaxed);
                (1..CALLS).for_each(|call| executor.call(call));
                let after = COUNT.load(Ordering::Relaxed);
                assert_eq!(after, before, "allocations on {threads} threads");
            });
        }
    }
    assert!(COUNT.load(Ordering::Relaxed) > 100, "the counter counts");
}
