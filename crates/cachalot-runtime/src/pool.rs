//! A fixed set of threads that run the tasks of one job at a time, together with the thread that asks.

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How often a waiting thread looks again before it sleeps: some tens of microseconds.
const SPINS: u32 = 4_000;

type Task = dyn Fn(usize) + Sync;

/// A resident pool: `threads - 1` workers and the thread that calls [`Pool::run`].
///
/// One job runs at a time; callers from several threads take turns. Which thread runs which task is not defined, so
/// a task must not depend on it: results may depend on the task index only.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

struct Shared {
    /// Number of the current job; a worker that has seen it waits for the next.
    job: AtomicUsize,
    current: Mutex<Job>,
    wake: Condvar,
    next_task: AtomicUsize,
    /// Workers that have not finished the current job.
    busy: AtomicUsize,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    task: Option<&'static Task>,
    count: usize,
}

impl Pool {
    /// A pool that computes on `threads` threads, the caller's included (at least one).
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: AtomicUsize::new(0),
            current: Mutex::new(Job { task: None, count: 0 }),
            wake: Condvar::new(),
            next_task: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads.max(1))
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                let name = format!("compute-{index}");
                // A machine that refuses another thread computes with those it has.
                std::thread::Builder::new().name(name).spawn(move || shared.serve()).ok()
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// A pool with one thread per core that this process may use.
    pub fn with_all_cores() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0) .. task(count - 1)`, each once, on all threads; returns when all are done.
    ///
    /// Must not be called from inside a task. A panic inside a task is carried to the caller once the others are done.
    pub fn run(&self, count: usize, task: impl Fn(usize) + Sync) {
        if count <= 1 || self.workers.is_empty() {
            (0..count).for_each(task);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let task: &(dyn Fn(usize) + Sync + '_) = &task;
        // SAFETY: only the lifetime is widened. Workers use the reference between the increment of `job` below and
        // their decrement of `busy`, and this function leaves only after `busy` is 0 (a panic of its own share is
        // caught first), so the closure outlives every use.
        let task: &'static Task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync + '_), &'static Task>(task) };
        let shared = &*self.shared;
        {
            let mut current = shared.current.lock().unwrap_or_else(PoisonError::into_inner);
            *current = Job { task: Some(task), count };
            shared.next_task.store(0, Ordering::Relaxed);
            shared.busy.store(self.workers.len(), Ordering::Relaxed);
            shared.job.fetch_add(1, Ordering::Release);
            shared.wake.notify_all();
        }
        shared.work(Job { task: Some(task), count });
        let mut spins = 0;
        while shared.busy.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Splits `out` in pieces of `piece` elements (the last may be shorter) and runs `task(index, piece)` on each.
    ///
    /// # Panics
    /// If `piece` is 0.
    pub fn run_pieces<T: Send>(&self, out: &mut [T], piece: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let pieces = Pieces::new(out, piece);
        self.run(pieces.count(), |index| {
            // SAFETY: `run` hands out every index below `count` once.
            task(index, unsafe { pieces.take(index) });
        });
    }

    /// Like [`Pool::run_pieces`], with one element of `scratch` lent to each running task.
    ///
    /// A task must not read what an earlier task left in its scratch. With fewer elements than threads, fewer threads
    /// work.
    ///
    /// # Panics
    /// If `piece` is 0, or `scratch` is empty and `out` is not.
    pub fn run_pieces_with<T: Send, S: Send>(
        &self,
        out: &mut [T],
        piece: usize,
        scratch: &mut [S],
        task: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        let pieces = Pieces::new(out, piece);
        let count = pieces.count();
        assert!(count == 0 || !scratch.is_empty(), "tasks need scratch");
        let next = AtomicUsize::new(0);
        let lanes = scratch.len().min(self.threads()).min(count);
        self.run_pieces(&mut scratch[..lanes], 1, |_, lane| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    break;
                }
                // SAFETY: the counter hands out every index below `count` once.
                task(&mut lane[0], index, unsafe { pieces.take(index) });
            }
        });
    }
}

/// A slice that tasks take disjoint pieces of.
struct Pieces<'a, T> {
    start: *mut T,
    total: usize,
    piece: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<'a, T: Send> Pieces<'a, T> {
    fn new(slice: &'a mut [T], piece: usize) -> Self {
        assert!(piece > 0, "a piece has at least one element");
        Self { start: slice.as_mut_ptr(), total: slice.len(), piece, slice: PhantomData }
    }

    fn count(&self) -> usize {
        self.total.div_ceil(self.piece)
    }

    /// # Safety
    /// Each index may be taken once only.
    #[allow(clippy::mut_from_ref)]
    unsafe fn take(&self, index: usize) -> &mut [T] {
        assert!(index < self.count());
        let start = index * self.piece;
        // SAFETY: the range lies inside the slice, which is mutably borrowed for 'a; ranges of different indices do
        // not overlap, and the caller takes each index once.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), self.piece.min(self.total - start)) }
    }
}

// SAFETY: shared access only hands out disjoint pieces, as `take` demands, and their elements may change threads.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        {
            let _current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.job.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker cannot panic outside a task, and a task's panic is caught.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let job = *self.current.lock().unwrap_or_else(PoisonError::into_inner);
            self.work(job);
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    fn wait_for_job(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let job = self.job.load(Ordering::Acquire);
            if job != seen {
                return job;
            }
            std::hint::spin_loop();
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let job = self.job.load(Ordering::Acquire);
            if job != seen {
                return job;
            }
            current = self.wake.wait(current).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self, job: Job) {
        let Some(task) = job.task else { return };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next_task.fetch_add(1, Ordering::Relaxed);
                if index >= job.count {
                    break;
                }
                task(index);
            }
        }));
        if let Err(panic) = outcome {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_threads() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for count in [0, 1, 2, 100, 1000] {
                let hits: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, |index| {
                    hits[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1), "{threads} threads, {count} tasks");
            }
        }
    }

    #[test]
    fn pieces_cover_the_slice() {
        let pool = Pool::new(2);
        let mut out = vec![0usize; 103];
        pool.run_pieces(&mut out, 10, |index, piece| piece.iter_mut().for_each(|value| *value = index + 1));
        assert!(out.iter().enumerate().all(|(position, value)| *value == position / 10 + 1));
    }

    #[test]
    fn scratch_is_never_shared() {
        let pool = Pool::new(4);
        let (mut out, mut scratch) = (vec![0usize; 1001], vec![0usize; 4]);
        pool.run_pieces_with(&mut out, 2, &mut scratch, |count, index, piece| {
            *count += 1;
            piece.fill(index + 1);
        });
        assert_eq!(scratch.iter().sum::<usize>(), 501);
        assert!(out.iter().enumerate().all(|(position, &value)| value == position / 2 + 1));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(10, |index| assert!(index != 5, "task five"))));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, |index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }

    #[test]
    fn jobs_from_many_threads_take_turns_and_sleepers_wake() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..50 {
                        if round % 10 == 0 {
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                        pool.run(8, |_| {
                            sum.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 50 * 8);
    }
}
