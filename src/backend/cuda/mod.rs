//! The CUDA back end: kernels as PTX text, and what it takes to run them.
//!
//! * [`driver`] what the back end needs of a driver; the driver is a type parameter, so the same host code runs on a
//!   device and on an emulator
//! * `device` a device behind the driver of this machine, with the feature `cuda`; everything else is there without it
//! * [`MODULES`] the kernels; the driver compiles them for the device it has
//! * `args` the kernels' arguments, `launch` what an op hands to the driver; then a file per family of ops, with the
//!   stem of its kernels' file
//!
//! Weights are copied once, as they lie in the file, when the back end is made; nothing is repacked. Values of the loop
//! that the packer did not mark as wide are f16, statistics and sums f32. A step of a sampling run is captured as a
//! graph on its first use and replayed from then on; its kernels find the current model call in device memory.

pub mod args;
mod attention;
mod conv;
#[cfg(feature = "cuda")]
pub mod device;
pub mod driver;
mod embed;
pub mod launch;
mod layout;
mod linear;
mod memory;
mod module;
mod norm;
mod pointwise;
mod probe;
mod quantize;
mod resample;
mod sampler;
mod vector_quantize;

mod modules {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub use memory::Arena;
pub use modules::MODULES;

use super::args::*;
use super::cost::Ceilings;
use super::{Backend, Call, MemoryRules};
use crate::error::{Error, Result};
use crate::format::TensorView;
use driver::Driver;
use launch::Launch;
use module::Kernels;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use zerocopy::IntoBytes;

/// A CUDA device with the weights of one file.
pub struct Cuda<'m, D: Driver> {
    driver: Rc<D>,
    /// The file's tensors, here and on the device.
    data: &'m [u8],
    weights: u64,
    narrow: Element,
    kernels: RefCell<Kernels<D>>,
    /// Whether ops only load their kernels, which must not happen while work is captured.
    loading: Cell<bool>,
    /// What went wrong in an op; told by the next method that can.
    fault: RefCell<Option<Error>>,
}

/// A tensor, and the device address of its first byte: all of it lies in the copy of the file.
#[derive(Clone, Copy)]
pub struct DeviceTensor<'a> {
    view: TensorView<'a>,
    at: u64,
}

impl<'a> DeviceTensor<'a> {
    /// As it lies in the file.
    pub fn view(&self) -> TensorView<'a> {
        self.view
    }

    /// The device address of a plain tensor of at least `len` elements.
    ///
    /// # Panics
    /// If it has fewer, or is one of codes: a bug of the caller.
    fn elements(&self, len: usize) -> u64 {
        let have = match self.view {
            TensorView::F32(v) => v.len(),
            TensorView::F16(v) => v.len(),
            TensorView::Codes(_) => 0,
        };
        assert!(len <= have, "{len} elements of a plain tensor that has {have}");
        self.at
    }
}

impl<'m, D: Driver> Cuda<'m, D> {
    /// A back end for the tensors `data` of one file: copies them to the device. Values that may be narrow are stored as
    /// `narrow`: [`Element::F16`], or [`Element::F32`] for comparisons.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has not enough memory.
    pub fn new(driver: D, data: &'m [u8], narrow: Element) -> Result<Self> {
        let weights = driver.alloc(data.len().max(1))?;
        let cuda = Cuda {
            driver: Rc::new(driver),
            data,
            weights,
            narrow,
            kernels: RefCell::new(Kernels::new(MODULES)),
            loading: Cell::new(false),
            fault: RefCell::new(None),
        };
        cuda.driver.upload_weights(weights, data)?;
        Ok(cuda)
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Hands a kernel to the driver, or only loads it.
    fn issue(&self, launch: Launch<'_>) {
        if self.fault.borrow().is_some() {
            return;
        }
        let function = self.kernels.borrow_mut().function(&self.driver, launch.kernel, launch.shared);
        let done = function.and_then(|function| match self.loading.get() {
            true => Ok(()),
            false => launch.hand_to(&*self.driver, function),
        });
        if let Err(e) = done {
            *self.fault.borrow_mut() = Some(e);
        }
    }

    /// Tells of a fault in an op issued before.
    fn check(&self) -> Result<()> {
        self.fault.borrow_mut().take().map_or(Ok(()), Err)
    }
}

impl<D: Driver> Drop for Cuda<'_, D> {
    fn drop(&mut self) {
        self.driver.free(self.weights);
    }
}

/// What the back end needs, known without a device.
#[derive(Clone, Copy, Debug)]
pub struct CudaSizing {
    /// How values that may be narrow are stored.
    pub narrow: Element,
}

impl CudaSizing {
    /// Bytes of device memory for a file with `data` bytes of tensors and programs with arenas of at most `arena`.
    pub fn device_bytes(data: usize, arena: usize) -> usize {
        data + memory::allocation(arena)
    }
}

impl MemoryRules for CudaSizing {
    fn narrow(&self) -> Element {
        self.narrow
    }

    fn thresholds(&self) -> bool {
        false
    }

    fn workspace<T>(&self, op: &OpArgs<T>) -> usize {
        match op {
            OpArgs::GroupNorm { args, .. } => norm::group_norm_workspace(args),
            OpArgs::Quantize(a) => quantize::quantize_workspace(a),
            OpArgs::Linear { .. }
            | OpArgs::Conv2d { .. }
            | OpArgs::Attention(_)
            | OpArgs::LayerNorm { .. }
            | OpArgs::Pointwise(_)
            | OpArgs::Add(_)
            | OpArgs::Concat(_)
            | OpArgs::VectorQuantize { .. }
            | OpArgs::Resample(_)
            | OpArgs::Parameter { .. }
            | OpArgs::Embedding { .. }
            | OpArgs::TimestepEmbedding(_)
            | OpArgs::PositionEmbedding(_)
            | OpArgs::Patch(_) => 0,
        }
    }
}

impl<D: Driver> MemoryRules for Cuda<'_, D> {
    fn narrow(&self) -> Element {
        self.narrow
    }

    fn thresholds(&self) -> bool {
        false
    }

    fn workspace<T>(&self, op: &OpArgs<T>) -> usize {
        CudaSizing { narrow: self.narrow }.workspace(op)
    }
}

impl<D: Driver> Backend for Cuda<'_, D> {
    type Arena = Arena<D>;
    type Weight<'a> = DeviceTensor<'a>;

    fn name(&self) -> String {
        format!("cuda ({})", self.driver.name())
    }

    fn ceilings(&self) -> Result<Option<Ceilings>> {
        probe::measure(&*self.driver, &mut self.kernels.borrow_mut()).map(Some)
    }

    fn arena(&self, bytes: usize) -> Result<Arena<D>> {
        Arena::new(self.driver.clone(), bytes)
    }

    fn check_memory(&self, bytes: usize) -> Result<()> {
        let (needed, free) = (memory::allocation(bytes), self.driver.memory()?.free);
        if needed > free {
            let expected =
                format!("{needed} bytes free beside the weights; make fewer images at a time, or smaller ones");
            return Err(Error::device_memory("device memory", expected, format!("{free} bytes")));
        }
        Ok(())
    }

    fn weight<'a>(&self, tensor: TensorView<'a>) -> Result<DeviceTensor<'a>> {
        let (first, bytes) = match &tensor {
            TensorView::F32(v) => (v.as_ptr().addr(), size_of_val(*v)),
            TensorView::F16(v) => (v.as_ptr().addr(), size_of_val(*v)),
            TensorView::Codes(m) => (m.planes[0].as_ptr().addr(), m.layout.blobs().total),
        };
        let inside = |at: &usize| at.checked_add(bytes).is_some_and(|end| end <= self.data.len());
        let offset = first.checked_sub(self.data.as_ptr().addr()).filter(inside);
        let Some(offset) = offset else {
            return Err(Error::request("tensor", "one of the file whose weights the device has", "another"));
        };
        Ok(DeviceTensor { view: tensor, at: self.weights + offset as u64 })
    }

    /// Kernels are loaded when the first op needs them: which ones depends on the weights, too.
    fn prepare<'a, T: 'a>(&self, _: impl Iterator<Item = &'a OpArgs<T>>) {}

    fn write_f32(&self, arena: &mut Arena<D>, at: usize, data: &[f32]) -> Result<()> {
        self.check()?;
        self.driver.upload(arena.place(at, data.len() * 4), data.as_bytes())
    }

    fn write_u32(&self, arena: &mut Arena<D>, at: usize, data: &[u32]) -> Result<()> {
        self.check()?;
        self.driver.upload(arena.place(at, data.len() * 4), data.as_bytes())
    }

    fn read_bytes(&self, arena: &Arena<D>, at: usize, out: &mut [u8]) -> Result<()> {
        self.check()?;
        self.driver.download(arena.place(at, out.len()), out)
    }

    fn wait(&self) -> Result<()> {
        self.check()?;
        self.driver.wait()
    }

    fn begin(&self, arena: &mut Arena<D>, call: Call) -> Result<()> {
        self.check()?;
        arena.set_call(call)
    }

    /// The host stays one step behind the device, so that progress is told when it is made and a lost device is
    /// noticed, while the device never waits.
    fn replay(
        &self,
        arena: &mut Arena<D>,
        call: Call,
        body: impl Fn(&Self, &mut Arena<D>) -> Result<()>,
    ) -> Result<()> {
        self.begin(arena, call)?;
        if arena.graph.is_none() {
            let step = |arena: &mut Arena<D>| {
                body(self, arena)?;
                sampler::advance(&arena.frame(), &mut |launch| self.issue(launch));
                self.check()
            };
            self.loading.set(true);
            let loaded = step(arena);
            self.loading.set(false);
            loaded?;
            arena.graph = Some(self.driver.capture(|| step(arena))?);
        }
        if let Some(graph) = &arena.graph {
            self.driver.replay(graph)?;
        }
        arena.advanced();
        let Some(ends) = &mut arena.ends else {
            arena.ends = Some([self.driver.mark()?, self.driver.mark()?]);
            return Ok(());
        };
        ends.swap(0, 1);
        self.driver.move_mark(&ends[0])?;
        self.driver.wait_for(&ends[1])
    }

    fn forget(&self, arena: &mut Arena<D>) {
        arena.forget();
    }

    fn linear(
        &self,
        arena: &mut Arena<D>,
        args: &LinearArgs,
        weight: &DeviceTensor<'_>,
        bias: Option<&DeviceTensor<'_>>,
    ) {
        linear::linear(&arena.frame(), args, weight, bias, &mut |launch| self.issue(launch));
    }

    fn conv2d(
        &self,
        arena: &mut Arena<D>,
        args: &Conv2dArgs,
        weight: &DeviceTensor<'_>,
        bias: Option<&DeviceTensor<'_>>,
    ) {
        conv::conv2d(&arena.frame(), args, weight, bias, &mut |launch| self.issue(launch));
    }

    fn attention(&self, arena: &mut Arena<D>, args: &AttentionArgs) {
        attention::attention(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn layer_norm(
        &self,
        arena: &mut Arena<D>,
        args: &LayerNormArgs,
        weight: Option<&DeviceTensor<'_>>,
        bias: Option<&DeviceTensor<'_>>,
    ) {
        norm::layer_norm(&arena.frame(), args, weight, bias, &mut |launch| self.issue(launch));
    }

    fn group_norm(
        &self,
        arena: &mut Arena<D>,
        args: &GroupNormArgs,
        weight: &DeviceTensor<'_>,
        bias: &DeviceTensor<'_>,
    ) {
        norm::group_norm(&arena.frame(), args, weight, bias, &mut |launch| self.issue(launch));
    }

    fn pointwise(&self, arena: &mut Arena<D>, args: &PointwiseArgs) {
        pointwise::pointwise(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn add(&self, arena: &mut Arena<D>, args: &AddArgs) {
        pointwise::add(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn concat(&self, arena: &mut Arena<D>, args: &ConcatArgs) {
        layout::concat(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn quantize(&self, arena: &mut Arena<D>, args: &QuantizeArgs) {
        quantize::quantize(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn vector_quantize(&self, arena: &mut Arena<D>, args: &VectorQuantizeArgs, table: &DeviceTensor<'_>) {
        vector_quantize::vector_quantize(&arena.frame(), args, table, &mut |launch| self.issue(launch));
    }

    fn resample(&self, arena: &mut Arena<D>, args: &ResampleArgs) {
        resample::resample(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn parameter(&self, arena: &mut Arena<D>, args: &ParameterArgs, tensor: &DeviceTensor<'_>) {
        embed::parameter(&arena.frame(), args, tensor, &mut |launch| self.issue(launch));
    }

    fn embedding(&self, arena: &mut Arena<D>, args: &EmbeddingArgs, table: &DeviceTensor<'_>) {
        embed::embedding(&arena.frame(), args, table, &mut |launch| self.issue(launch));
    }

    fn timestep_embedding(&self, arena: &mut Arena<D>, args: &TimestepEmbeddingArgs) {
        embed::timestep_embedding(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn position_embedding(&self, arena: &mut Arena<D>, args: &PositionEmbeddingArgs) {
        embed::position_embedding(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn patch(&self, arena: &mut Arena<D>, args: &PatchArgs) {
        layout::patch(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn model_input(&self, arena: &mut Arena<D>, args: &ModelInputArgs) {
        sampler::model_input(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn sampler_step(&self, arena: &mut Arena<D>, args: &SamplerStepArgs) {
        sampler::sampler_step(&arena.frame(), args, &mut |launch| self.issue(launch));
    }
}
