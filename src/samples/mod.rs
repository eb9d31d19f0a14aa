//! Many images, made in parts by as many machines as there are, and put together.
//!
//! ```text
//! options, N --> SampleJob --shard k/n--> make, batch after batch --> DIR/shard-k-of-n.safetensors --+
//!                                                  (those that are done lie in *.partial)           +--> Merge
//!                                         other machines' shards -----------------------------------+
//! ```
//!
//! Image `i` of a job depends on the job and on `i` alone: its seed is the job's plus `i`, it shows prompt or class `i` modulo
//! their number, and no op mixes samples. So neither the number of shards nor batches change a bit of it, on one kind of
//! processor: instruction sets round differently, and files say which one made them.
//!
//! What is done stays done: a batch is kept as soon as it is made, a shard appears whole, and the same call again makes what
//! is missing. Processes that make the same shard at once make the same bytes.
//!
//! * [`SampleJob`] what to make; [`make()`] makes a shard of it
//! * [`SampleFile`] the file of a shard; [`Merge`] all shards of a job

mod file;
mod job;
mod make;
mod merge;
mod npz;
mod statistics;

pub use file::{SampleFile, Tensor};
pub use job::{Kept, SampleJob, SampleOptions};
pub use make::{Event, MadeShard, make};
pub use merge::Merge;
pub use statistics::Statistics;
