//! The CUDA back end: kernels as PTX text, and what it takes to run them.
//!
//! * [`driver`] what the back end needs of a driver; the driver is a type parameter, so the same host code runs on a
//!   device and on an emulator
//! * `device` a device behind the driver of this machine, with the feature `cuda`; everything else is there without it
//! * [`MODULES`] the kernels; the driver compiles them for the device it has
//! * `memory` arenas, and `weights` what they read of the file
//! * `args` the kernels' arguments, `launch` what an op hands to the driver; then a file per family of ops, with the
//!   stem of its kernels' file
//!
//! This file holds the trait's methods, one per op, each a line or two; hence its length.
//!
//! Weights are copied as they lie in the file, those of a program when it is bound; nothing is repacked. They stay for as
//! long as something bound to them does, so a text encoder's need not be there beside the denoiser's. Values of the loop
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
mod rotary;
mod round;
mod sampler;
mod sizing;
mod vector_quantize;
mod weights;

mod modules {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub use memory::Arena;
pub use modules::MODULES;
pub use sizing::CudaSizing;
pub use weights::{DeviceTensor, Weights};

use super::args::*;
use super::cost::Ceilings;
use super::{Backend, Call, Clock, Footprint, MemoryRules};
use crate::error::{Error, Result};
use crate::format::TensorView;
use driver::Driver;
use launch::{Kernel, Launch};
use module::Kernels;
use std::cell::RefCell;
use std::rc::Rc;
use zerocopy::IntoBytes;

/// A CUDA device for the programs of one file.
pub struct Cuda<'m, D: Driver> {
    driver: Rc<D>,
    /// The file's tensors.
    data: &'m [u8],
    narrow: Element,
    kernels: RefCell<Kernels<D>>,
    /// While ops are only to tell what kernels they need, with their dynamic shared memory: what they told.
    wanted: RefCell<Option<Vec<(Kernel, usize)>>>,
    /// What went wrong in an op; told by the next method that can.
    fault: RefCell<Option<Error>>,
}

impl<'m, D: Driver> Cuda<'m, D> {
    /// A back end for the tensors `data` of one file, of which nothing is on the device yet. Values that may be narrow are
    /// stored as `narrow`: [`Element::F16`], or [`Element::F32`] for comparisons.
    pub fn new(driver: D, data: &'m [u8], narrow: Element) -> Self {
        Cuda {
            driver: Rc::new(driver),
            data,
            narrow,
            kernels: RefCell::new(Kernels::new(MODULES)),
            wanted: RefCell::default(),
            fault: RefCell::new(None),
        }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Runs what [`ceilings`](Backend::ceilings) times, briefly, and checks what it computes; copies take twice `copy`
    /// bytes of memory, a multiple of a MiB.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails or computes something else.
    pub fn check_probes(&self, copy: usize) -> Result<()> {
        probe::check(&*self.driver, &mut self.kernels.borrow_mut(), copy)
    }

    /// Hands a kernel to the driver, or only notes that it is needed.
    fn issue(&self, launch: Launch<'_>) {
        if let Some(wanted) = &mut *self.wanted.borrow_mut() {
            return wanted.push((launch.kernel, launch.shared));
        }
        if self.fault.borrow().is_some() {
            return;
        }
        let function = self.kernels.borrow_mut().function(&self.driver, launch.kernel, launch.shared);
        if let Err(e) = function.and_then(|function| launch.hand_to(&*self.driver, function)) {
            *self.fault.borrow_mut() = Some(e);
        }
    }

    /// Loads the kernels of the ops that `body` issues, and runs none.
    fn load_kernels(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        *self.wanted.borrow_mut() = Some(Vec::new());
        let issued = body();
        let wanted = self.wanted.take().unwrap_or_default();
        issued?;
        self.kernels.borrow_mut().load(&self.driver, &wanted)
    }

    /// Tells of a fault in an op issued before.
    fn check(&self) -> Result<()> {
        self.fault.borrow_mut().take().map_or(Ok(()), Err)
    }
}

impl<D: Driver> MemoryRules for Cuda<'_, D> {
    fn narrow(&self) -> Element {
        self.narrow
    }

    fn makes_codes(&self) -> bool {
        false
    }

    fn thresholds(&self) -> bool {
        false
    }

    fn workspace<T>(&self, op: &OpArgs<T>) -> usize {
        CudaSizing { narrow: self.narrow }.workspace(op)
    }

    fn footprint(&self, arena: usize, weights: usize) -> Footprint {
        CudaSizing { narrow: self.narrow }.footprint(arena, weights)
    }
}

impl<D: Driver> Backend for Cuda<'_, D> {
    type Arena = Arena<D>;
    type Weight<'a> = DeviceTensor<'a>;
    type Weights = Rc<Weights<D>>;
    type Mark = D::Event;

    fn name(&self) -> String {
        format!("cuda ({})", self.driver.name())
    }

    fn ceilings(&self) -> Result<Option<Ceilings>> {
        probe::measure(&*self.driver, &mut self.kernels.borrow_mut()).map(Some)
    }

    fn free_memory(&self) -> Result<Option<usize>> {
        self.driver.memory().map(|memory| Some(memory.free))
    }

    fn weight<'a>(&self, tensor: TensorView<'a>) -> Result<DeviceTensor<'a>> {
        let other = || Error::request("tensor", "one of the file that the device is used for", "another");
        DeviceTensor::find(tensor, self.data).ok_or_else(other)
    }

    fn ready(&self, tensors: &[DeviceTensor<'_>]) -> Result<Rc<Weights<D>>> {
        Weights::upload(self.driver.clone(), self.data, tensors).map(Rc::new)
    }

    fn arena(&self, bytes: usize, weights: &Rc<Weights<D>>) -> Result<Arena<D>> {
        Arena::new(self.driver.clone(), bytes, weights.clone())
    }

    /// An op's memory is in the arena.
    fn prepare<'a, T: 'a>(&self, _: impl Iterator<Item = &'a OpArgs<T>>) {}

    fn load(&self, arena: &mut Arena<D>, body: impl FnOnce(&Self, &mut Arena<D>)) -> Result<()> {
        self.load_kernels(|| {
            body(self, arena);
            Ok(())
        })
    }

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

    fn mark(&self, _: Clock) -> Result<D::Event> {
        self.check()?;
        self.driver.mark_time()
    }

    fn move_mark(&self, mark: &mut D::Event, _: Clock) -> Result<()> {
        self.check()?;
        self.driver.move_mark(mark)
    }

    fn between(&self, from: &D::Event, to: &D::Event) -> Result<f64> {
        self.driver.elapsed(from, to)
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
            // Nothing may be loaded while work is captured.
            self.load_kernels(|| step(arena))?;
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

    fn add(&self, arena: &mut Arena<D>, args: &PairArgs) {
        pointwise::add(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn multiply(&self, arena: &mut Arena<D>, args: &PairArgs) {
        pointwise::multiply(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn concat(&self, arena: &mut Arena<D>, args: &ConcatArgs) {
        layout::concat(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn slice(&self, arena: &mut Arena<D>, args: &SliceArgs) {
        layout::slice(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn pad_rows(&self, arena: &mut Arena<D>, args: &PadRowsArgs, table: &DeviceTensor<'_>) {
        layout::pad_rows(&arena.frame(), args, table, &mut |launch| self.issue(launch));
    }

    fn rotary(&self, arena: &mut Arena<D>, args: &RotaryArgs) {
        rotary::rotary(&arena.frame(), args, &mut |launch| self.issue(launch));
    }

    fn quantize(&self, arena: &mut Arena<D>, args: &QuantizeArgs, factors: Option<&DeviceTensor<'_>>) {
        quantize::quantize(&arena.frame(), args, factors, &mut |launch| self.issue(launch));
    }

    fn round(&self, arena: &mut Arena<D>, args: &RoundArgs) {
        round::round(&arena.frame(), args, &mut |launch| self.issue(launch));
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

    fn relative_bias(&self, arena: &mut Arena<D>, args: &RelativeBiasArgs, table: &DeviceTensor<'_>) {
        embed::relative_bias(&arena.frame(), args, table, &mut |launch| self.issue(launch));
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
