//! What an operator sees of it: metrics under upstream's names, and the dumps below /debug/api_priority_and_fairness.

use std::{fmt::Write as _, sync::atomic::Ordering};

use super::{FlowControl, age, level::Numbers};

impl FlowControl {
    /// The exposition text.
    pub fn metrics(&self) -> String {
        type Gauge = (&'static str, fn(&Numbers) -> u32);
        const GAUGES: [Gauge; 7] = [
            ("nominal_limit_seats", |numbers| numbers.nominal),
            ("lower_limit_seats", |numbers| numbers.min),
            ("upper_limit_seats", |numbers| numbers.max),
            ("current_limit_seats", |numbers| numbers.current),
            ("current_executing_seats", |numbers| numbers.seats),
            ("current_executing_requests", |numbers| numbers.executing),
            ("current_inqueue_requests", |numbers| numbers.waiting),
        ];
        let rules = self.rules.load();
        let levels: Vec<_> = rules.levels.iter().map(|level| (&level.name, level.numbers())).collect();
        let mut out = String::new();
        for (gauge, value) in GAUGES {
            let name = format!("apiserver_flowcontrol_{gauge}");
            let _ = writeln!(out, "# TYPE {name} gauge");
            for (level, numbers) in &levels {
                let _ = writeln!(out, "{name}{{priority_level=\"{level}\"}} {}", value(numbers));
            }
        }
        let name = "apiserver_flowcontrol_dispatched_requests_total";
        let _ = writeln!(out, "# TYPE {name} counter");
        for schema in &rules.schemas {
            let count = schema.counters.dispatched.load(Ordering::Relaxed);
            let labels = format!("flow_schema=\"{}\",priority_level=\"{}\"", schema.name, schema.level.name);
            let _ = writeln!(out, "{name}{{{labels}}} {count}");
        }
        let name = "apiserver_flowcontrol_rejected_requests_total";
        let _ = writeln!(out, "# TYPE {name} counter");
        for schema in &rules.schemas {
            let counters = &schema.counters;
            let labels = format!("flow_schema=\"{}\",priority_level=\"{}\"", schema.name, schema.level.name);
            for (reason, counter) in [
                ("queue-full", &counters.queue_full),
                ("time-out", &counters.timed_out),
                ("concurrency-limit", &counters.concurrency_limit),
            ] {
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    let _ = writeln!(out, "{name}{{{labels},reason=\"{reason}\"}} {count}");
                }
            }
        }
        out
    }

    /// One of the dumps, as lines of values; `None` for any other name.
    pub fn dump(&self, name: &str) -> Option<String> {
        let rules = self.rules.load();
        let mut out = String::new();
        match name {
            "dump_priority_levels" => {
                out.push_str(
                    "PriorityLevelName, ActiveQueues, IsIdle, IsQuiescing, WaitingRequests, ExecutingRequests, \
                     DispatchedRequests, RejectedRequests, TimedoutRequests, CancelledRequests\n",
                );
                for level in &rules.levels {
                    let numbers = level.numbers();
                    let active = level.queues().iter().filter(|(length, _)| *length > 0).count();
                    let idle = numbers.executing == 0 && numbers.waiting == 0;
                    let of = rules.schemas.iter().filter(|schema| schema.level.name == level.name);
                    let (mut dispatched, mut rejected, mut timed_out) = (0, 0, 0);
                    for schema in of {
                        let counters = &schema.counters;
                        dispatched += counters.dispatched.load(Ordering::Relaxed);
                        rejected += counters.queue_full.load(Ordering::Relaxed)
                            + counters.concurrency_limit.load(Ordering::Relaxed);
                        timed_out += counters.timed_out.load(Ordering::Relaxed);
                    }
                    let _ = writeln!(
                        out,
                        "{}, {active}, {idle}, false, {}, {}, {dispatched}, {rejected}, {timed_out}, 0",
                        level.name, numbers.waiting, numbers.executing
                    );
                }
            }
            "dump_queues" => {
                out.push_str("PriorityLevelName, Index, PendingRequests, ExecutingRequests, SeatsInUse, NextDispatchR\n");
                for level in &rules.levels {
                    for (index, (length, time)) in level.queues().into_iter().enumerate() {
                        let _ = writeln!(out, "{}, {index}, {length}, , , {time:.8}ss", level.name);
                    }
                }
            }
            "dump_requests" => {
                out.push_str(
                    "PriorityLevelName, FlowSchemaName, QueueIndex, RequestIndexInQueue, FlowDistingsher, WaitSeconds, \
                     InitialSeats\n",
                );
                for level in &rules.levels {
                    for (index, (queue, schema, flow, seats, since)) in
                        level.waiters().into_iter().enumerate()
                    {
                        let waited = age(since).as_secs_f64();
                        let name = &level.name;
                        let _ =
                            writeln!(out, "{name}, {schema}, {queue}, {index}, {flow}, {waited:.6}, {seats}");
                    }
                }
            }
            _ => return None,
        }
        Some(out)
    }
}
