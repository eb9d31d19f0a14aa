//! Captured work. `cust` has no graphs.

use super::StreamInContext;
use super::fault::Answer;
use super::module::Loaded;
use crate::error::Result;
use cust::stream::Stream;
use cust::sys;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

/// Captured work of a [`Device`](super::Device).
pub struct Graph {
    raw: Ready,
    /// What its kernels are of; held, not read.
    pub(super) modules: Vec<Arc<Loaded>>,
    pub(super) core: Rc<StreamInContext>,
}

impl Graph {
    /// Records what `body` queues on the stream of `core`.
    pub(super) fn record(core: &Rc<StreamInContext>, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        let recording = Recording::begin(&core.stream)?;
        let done = body();
        // The body may have used another device.
        core.enter()?;
        let template = recording.end();
        done?;
        let template = template?;
        let mut raw = ptr::null_mut();
        // SAFETY: the graph is the one just captured. Of the entries that instantiate, this one has had one signature
        // from CUDA 11.4 on; the one without flags has had three.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, template.0, 0) }.or_fault("preparing a graph")?;
        Ok(Graph { raw: Ready(raw), modules: vec![], core: core.clone() })
    }

    /// Queues it on its stream.
    pub(super) fn run(&self) -> Result<()> {
        // SAFETY: graph and stream live; what its kernels reach is the back end's to prove, as for a launch.
        unsafe { sys::cuGraphLaunch(self.raw.0, self.core.stream.as_inner()) }.or_fault("running a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.core.enter();
    }
}

/// A graph that can run.
struct Ready(sys::CUgraphExec);

impl Drop for Ready {
    fn drop(&mut self) {
        // SAFETY: it was instantiated and nothing else refers to it; the driver lets a running replay finish.
        unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

/// A graph as captured.
struct Template(sys::CUgraph);

impl Drop for Template {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: a graph of ours; what was instantiated of it stays.
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

/// A stream that records instead of running, until this is dropped: a failure does not leave it recording.
struct Recording<'a>(Option<&'a Stream>);

impl<'a> Recording<'a> {
    fn begin(stream: &'a Stream) -> Result<Self> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { sys::cuStreamBeginCapture_v2(stream.as_inner(), mode) }.or_fault("recording a graph")?;
        Ok(Recording(Some(stream)))
    }

    fn end(mut self) -> Result<Template> {
        self.finish()
    }

    fn finish(&mut self) -> Result<Template> {
        let mut template = Template(ptr::null_mut());
        if let Some(stream) = self.0.take() {
            // SAFETY: the stream lives and is recording.
            unsafe { sys::cuStreamEndCapture(stream.as_inner(), &mut template.0) }.or_fault("recording a graph")?;
        }
        Ok(template)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}
