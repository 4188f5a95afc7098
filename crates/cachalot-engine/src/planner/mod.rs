//! What fits where, and what it will do per second: known before anything is allocated.

mod available;
mod forecast;
mod memory;
pub mod units;

pub use available::Available;
pub use forecast::{Bound, Forecast, Late, PROMPTS, PromptTime, Rates};
pub use memory::{Line, MemoryPlan, MemoryRequest, PlanError, Sizes};
