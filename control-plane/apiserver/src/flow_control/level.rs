//! One priority level: seats, and queues for those who wait for one.
//!
//! ```text
//! take: nobody waits and a seat is free -> in (one compare-and-swap)
//!       else -> the shortest of the flow's queues -> in when it is the turn of the queue, or out after a while
//! ```
//!
//! The queue that comes next is the one that was served least: each has a virtual time, in seat-seconds, which moves by
//! an estimate when a request of it goes in and is put right when that request ends.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::shares::{Limits, Share};

/// What a request is thought to take before it ended.
const SERVICE_SECONDS: f64 = 0.003;

/// How those who find no free seat are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    Reject,
    Queue { queues: u32, hand: u32, length: u32 },
}

/// Why a request did not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    QueueFull,
    TimedOut,
    ConcurrencyLimit,
}

pub struct Level {
    pub(super) name: String,
    /// Never limited.
    pub(super) exempt: bool,
    nominal: AtomicU32,
    min: AtomicU32,
    max: AtomicU32,
    /// Seats that may be taken at this time.
    current: AtomicU32,
    /// Seats that are taken.
    seats: AtomicU32,
    executing: AtomicU32,
    waiting: AtomicU32,
    /// The most seats that were taken or waited for since the last look.
    demand: AtomicU32,
    inside: Mutex<Inside>,
}

struct Inside {
    share: Share,
    response: Response,
    queues: Vec<Queue>,
    /// The virtual time of the queue that was served last.
    now: f64,
    /// Seats that the level needed of late; falls slowly.
    smooth: f64,
}

#[derive(Default)]
struct Queue {
    waiters: VecDeque<Arc<Waiter>>,
    virtual_time: f64,
}

struct Waiter {
    seats: u32,
    state: AtomicU8,
    notify: Notify,
    pub(super) since: Instant,
    schema: String,
    flow: String,
}

const WAITING: u8 = 0;
const ADMITTED: u8 = 1;
const GONE: u8 = 2;

/// Seats that are taken; given back when dropped.
pub(super) struct Seats {
    level: Arc<Level>,
    seats: u32,
    /// Where the request waited, and since when it is in.
    queued: Option<(usize, Instant)>,
}

/// What a level's numbers are at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) nominal: u32,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) current: u32,
    pub(super) seats: u32,
    pub(super) executing: u32,
    pub(super) waiting: u32,
}

impl Level {
    pub(super) fn new(name: &str, exempt: bool) -> Self {
        Self {
            name: name.to_owned(),
            exempt,
            nominal: AtomicU32::new(0),
            min: AtomicU32::new(0),
            max: AtomicU32::new(0),
            current: AtomicU32::new(1),
            seats: AtomicU32::new(0),
            executing: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            demand: AtomicU32::new(0),
            inside: Mutex::new(Inside {
                share: Share::default(),
                response: Response::Reject,
                queues: Vec::new(),
                now: 0.0,
                smooth: 0.0,
            }),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the level's object says. Queues that are no longer there are emptied before they go.
    pub(super) fn configure(&self, share: Share, response: Response) {
        let mut inside = self.inside();
        inside.share = share;
        inside.response = response;
        let count = match response {
            Response::Reject => 0,
            Response::Queue { queues, .. } => queues as usize,
        };
        while inside.queues.len() > count.max(1)
            && inside.queues.last().is_some_and(|queue| queue.waiters.is_empty())
        {
            inside.queues.pop();
        }
        let now = inside.now;
        let needed = inside.queues.len().max(count);
        inside.queues.resize_with(needed, || Queue { virtual_time: now, ..Queue::default() });
    }

    pub(super) fn share(&self) -> Share {
        self.inside().share
    }

    /// New limits start with the nominal seats.
    pub(super) fn set_limits(self: &Arc<Self>, limits: Limits) {
        self.min.store(limits.min, Ordering::Relaxed);
        self.max.store(limits.max, Ordering::Relaxed);
        if self.nominal.swap(limits.nominal, Ordering::Relaxed) != limits.nominal {
            self.set_current(limits.nominal);
        }
    }

    pub(super) fn set_current(self: &Arc<Self>, seats: u32) {
        self.current.store(seats.max(1), Ordering::Relaxed);
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.dispatch(&mut self.inside());
        }
    }

    pub(super) fn numbers(&self) -> Numbers {
        let load = |number: &AtomicU32| number.load(Ordering::Relaxed);
        Numbers {
            nominal: load(&self.nominal),
            min: load(&self.min),
            max: load(&self.max),
            current: load(&self.current),
            seats: load(&self.seats),
            executing: load(&self.executing),
            waiting: load(&self.waiting),
        }
    }

    /// The most seats that one request may take.
    pub(super) fn seats_max(&self) -> u32 {
        (self.nominal.load(Ordering::Relaxed) * 15).div_ceil(100).max(1)
    }

    /// What the level is to get when seats are shared out anew: what it needed of late.
    pub(super) fn target(&self) -> f64 {
        const FALL: f64 = 0.977;
        let needed = f64::from(self.demand.swap(self.seats.load(Ordering::Relaxed), Ordering::Relaxed));
        let mut inside = self.inside();
        inside.smooth = needed.max(FALL * inside.smooth + (1.0 - FALL) * needed);
        inside.smooth.max(f64::from(self.min.load(Ordering::Relaxed)))
    }

    /// Takes seats, at once or after a wait of at most `patience`.
    pub(super) async fn take(
        self: &Arc<Self>,
        seats: u32,
        schema: &str,
        flow: &str,
        patience: Duration,
    ) -> Result<Seats, Refusal> {
        if self.exempt {
            self.executing.fetch_add(1, Ordering::Relaxed);
            return Ok(Seats { level: Arc::clone(self), seats: 0, queued: None });
        }
        if self.waiting.load(Ordering::Acquire) == 0 && self.try_seats(seats) {
            return Ok(self.entered(seats, None));
        }
        self.wait(seats, schema, flow, patience).await
    }

    fn entered(self: &Arc<Self>, seats: u32, queued: Option<(usize, Instant)>) -> Seats {
        self.executing.fetch_add(1, Ordering::Relaxed);
        Seats { level: Arc::clone(self), seats, queued }
    }

    /// One request always fits where no other is, however wide it is.
    fn try_seats(&self, wanted: u32) -> bool {
        let current = self.current.load(Ordering::Relaxed);
        let fits = |taken: u32| (taken == 0 || taken + wanted <= current).then_some(taken + wanted);
        let taken = self.seats.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits);
        let Ok(before) = taken else { return false };
        self.note_demand(before + wanted);
        true
    }

    fn note_demand(&self, seats: u32) {
        if seats > self.demand.load(Ordering::Relaxed) {
            self.demand.fetch_max(seats, Ordering::Relaxed);
        }
    }

    async fn wait(
        self: &Arc<Self>,
        seats: u32,
        schema: &str,
        flow: &str,
        patience: Duration,
    ) -> Result<Seats, Refusal> {
        let turn = {
            let mut inside = self.inside();
            let Response::Queue { queues, hand, length } = inside.response else {
                return if self.try_seats(seats) {
                    Ok(self.entered(seats, None))
                } else {
                    Err(Refusal::ConcurrencyLimit)
                };
            };
            let dealt = deal(schema, flow, queues, hand);
            let queue = dealt
                .into_iter()
                .min_by_key(|index| inside.queues[*index].waiters.len())
                .expect("a hand has a card");
            if inside.queues[queue].waiters.len() >= length as usize {
                return Err(Refusal::QueueFull);
            }
            let waiter = Arc::new(Waiter {
                seats,
                state: AtomicU8::new(WAITING),
                notify: Notify::new(),
                since: Instant::now(),
                schema: schema.to_owned(),
                flow: flow.to_owned(),
            });
            let now = inside.now;
            let entry = &mut inside.queues[queue];
            if entry.waiters.is_empty() {
                // A queue that was empty has no claim on the past.
                entry.virtual_time = entry.virtual_time.max(now);
            }
            entry.waiters.push_back(Arc::clone(&waiter));
            self.waiting.fetch_add(1, Ordering::AcqRel);
            self.note_demand(self.seats.load(Ordering::Relaxed) + self.waiting.load(Ordering::Relaxed));
            // A seat may have been given back since the look above.
            self.dispatch(&mut inside);
            Turn { level: Arc::clone(self), waiter, queue, is_taken: false }
        };
        turn.wait(patience).await
    }

    /// Lets in who is next while there are seats.
    fn dispatch(&self, inside: &mut Inside) {
        loop {
            let next = inside
                .queues
                .iter()
                .enumerate()
                .filter(|(_, queue)| !queue.waiters.is_empty())
                .min_by(|(_, a), (_, b)| a.virtual_time.total_cmp(&b.virtual_time));
            let Some((index, queue)) = next else { return };
            let Some(waiter) = queue.waiters.front().cloned() else { return };
            let is_there = waiter.state.load(Ordering::Acquire) != GONE;
            if is_there && !self.try_seats(waiter.seats) {
                return;
            }
            let queue = &mut inside.queues[index];
            queue.waiters.pop_front();
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            let admitted =
                waiter.state.compare_exchange(WAITING, ADMITTED, Ordering::AcqRel, Ordering::Acquire);
            if admitted.is_ok() {
                inside.now = queue.virtual_time;
                queue.virtual_time += f64::from(waiter.seats) * SERVICE_SECONDS;
                waiter.notify.notify_one();
            } else if is_there {
                // It went between the look and the turn.
                self.seats.fetch_sub(waiter.seats, Ordering::AcqRel);
            }
        }
    }

    fn give_back(&self, seats: u32, queued: Option<(usize, Instant)>) {
        self.seats.fetch_sub(seats, Ordering::AcqRel);
        let someone_waits = self.waiting.load(Ordering::Acquire) > 0;
        if queued.is_none() && !someone_waits {
            return;
        }
        let mut inside = self.inside();
        if let Some((queue, began)) = queued
            && let Some(queue) = inside.queues.get_mut(queue)
        {
            queue.virtual_time += f64::from(seats) * (began.elapsed().as_secs_f64() - SERVICE_SECONDS);
        }
        self.dispatch(&mut inside);
    }

    /// The waiting requests: queue, schema, flow, seats and since when.
    pub(super) fn waiters(&self) -> Vec<(usize, String, String, u32, Instant)> {
        let inside = self.inside();
        let all = inside.queues.iter().enumerate().flat_map(|(index, queue)| {
            queue.waiters.iter().map(move |waiter| {
                (index, waiter.schema.clone(), waiter.flow.clone(), waiter.seats, waiter.since)
            })
        });
        all.collect()
    }

    /// Length and virtual time of each queue.
    pub(super) fn queues(&self) -> Vec<(usize, f64)> {
        self.inside().queues.iter().map(|queue| (queue.waiters.len(), queue.virtual_time)).collect()
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        self.level.executing.fetch_sub(1, Ordering::Relaxed);
        if !self.level.exempt {
            self.level.give_back(self.seats, self.queued);
        }
    }
}

/// A place in a queue; given up when dropped.
struct Turn {
    level: Arc<Level>,
    waiter: Arc<Waiter>,
    queue: usize,
    is_taken: bool,
}

impl Turn {
    async fn wait(mut self, patience: Duration) -> Result<Seats, Refusal> {
        let notified = tokio::time::timeout(patience, self.waiter.notify.notified()).await;
        if notified.is_err() && self.give_up() {
            return Err(Refusal::TimedOut);
        }
        self.is_taken = true;
        let seats = self.waiter.seats;
        Ok(self.level.entered(seats, Some((self.queue, Instant::now()))))
    }

    /// Whether the place was given up before the turn came.
    fn give_up(&self) -> bool {
        let gone = self.waiter.state.compare_exchange(WAITING, GONE, Ordering::AcqRel, Ordering::Acquire);
        if gone.is_err() {
            return false;
        }
        let mut inside = self.level.inside();
        // Queues that emptied may have gone since.
        let Some(queue) = inside.queues.get_mut(self.queue) else { return true };
        let before = queue.waiters.len();
        queue.waiters.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        if queue.waiters.len() < before {
            self.level.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_taken || self.waiter.state.load(Ordering::Acquire) == GONE {
            return;
        }
        if !self.give_up() {
            // The seats came, and nobody was there any more.
            self.level.give_back(self.waiter.seats, None);
        }
    }
}

/// The hand of a flow: `hand` different queues of `queues`, the same for every request of the flow.
fn deal(schema: &str, flow: &str, queues: u32, hand: u32) -> Vec<usize> {
    let mut hash = Sha256::new();
    hash.update((schema.len() as u64).to_le_bytes());
    hash.update(schema);
    hash.update(flow);
    let digest: [u8; 32] = hash.finalize().into();
    let mut bits = u128::from_le_bytes(digest[..16].try_into().expect("16 of 32 bytes"));
    let deck = queues.max(1);
    let mut dealt: Vec<usize> = Vec::new();
    for taken in 0..hand.clamp(1, deck) {
        let left = u128::from(deck - taken);
        let mut card = usize::try_from(bits % left).expect("less than the number of queues");
        bits /= left;
        // The card counts among those that are still in the deck.
        let mut sorted = dealt.clone();
        sorted.sort_unstable();
        for gone in sorted {
            if card >= gone {
                card += 1;
            }
        }
        dealt.push(card);
    }
    dealt
}

#[cfg(test)]
mod tests;
