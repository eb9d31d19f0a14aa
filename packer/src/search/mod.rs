//! Search: which choice for which layer, so that the file fits a budget and the error at the output is least.
//!
//! ```text
//! sensitivities --+                      +-- Problem --knapsack--> assignment --> configuration
//! quant_cache.pkl --predictor-- errors --+                            |  ^
//! file of all choices ------------------------- Trials: measured whole +--+ moves
//! ```
//!
//! Errors of single layers add up at the output (methods.md §3.2), so what [`sensitivity`](crate::sensitivity) measured makes this
//! a knapsack ([`Problem`]): one choice per layer, the sum of sizes within the budget, the sum of errors least. It is solved twice
//! (`knapsack`): by prices per size, which give the front of all budgets at once and a bound that no assignment is below, and by a
//! table over sizes, which fills what is left of a budget. How far the result may be from the best one is part of it.
//!
//! Whole configurations are measured in the file of all choices ([`Trials`]): nothing is packed for it. That tests what
//! was predicted, moves on from it ([`refine`]), and makes what others search by: random configurations ([`random`]) with
//! their errors, kept as Qua2SeDiMo keeps them ([`cache`]), and a predictor that learns from these ([`predict`]).

pub mod archive;
pub mod cache;
pub mod contest;
pub mod insights;
mod knapsack;
mod layer;
pub mod predict;
mod problem;
pub mod random;
mod refine;
mod times;
mod trials;

pub use knapsack::{Item, Solution, front, solve};
pub use layer::Layer;
pub use problem::{Budget, Found, Objective, Problem, Rule};
pub use refine::{Refined, refine};
pub use times::Times;
pub use trials::{Meter, Trials};
