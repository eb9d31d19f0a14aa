//! Packed models over HTTP.
//!
//! ```text
//! request --http--> Wish --served--> Order --queue--> engine (one thread, one job at a time) --> pictures
//!                                                        |
//!                            every waiting request <-- Progress (steps, pictures, an end)
//! ```
//!
//! * `wish`: what a client asks, whichever API it speaks; `served`: a model, which makes an order of it or refuses it
//! * `job`, `queue`, `engine`: orders wait their turn, first come, first served; one is at work at a time
//! * `http`: the APIs, and what guards them
//!
//! Pictures are those of `aquatint run`, to the bit, whatever else waits in the queue. A request whose client goes away is
//! cancelled, and its job ends after the step at work.
#![deny(unsafe_code, missing_docs)]

mod encode;
mod engine;
mod http;
mod job;
mod queue;
mod refusal;
mod served;
mod settings;
mod wish;

pub use engine::Engine;
pub use http::{Server, Stop};
pub use served::{Catalogue, Served};
pub use settings::{Limits, Memory, Settings};
