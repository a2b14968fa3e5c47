//! CronJobs: the schedule's syntax, and the job template.

use api::field::FieldError;
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    job::{default_job_template_spec, validate_job_spec},
    rules::Errors,
    table::{AGE, NAME, NONE, container_images, container_names, or, selector, since},
};

pub(super) struct CronJobs;

/// Room for the 11 characters that the controller adds for a job's name.
const NAME_LENGTH_MAX: usize = 52;

const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Schedule", "string", |o, _| text(o, "/spec/schedule").into()),
    Column::new("Timezone", "string", |o, _| or(text(o, "/spec/timeZone"), NONE).into()),
    Column::new("Suspend", "boolean", |o, _| suspend(o).into()),
    Column::new("Active", "integer", |o, _| items(o, "/status/active").len().into()),
    Column::new("Last Schedule", "string", |o, now| last_schedule(o, now).into()),
    AGE,
    Column::new("Containers", "string", |o, _| {
        container_names(at(o, "/spec/jobTemplate/spec/template/spec")).into()
    })
    .wide(),
    Column::new("Images", "string", |o, _| {
        container_images(at(o, "/spec/jobTemplate/spec/template/spec")).into()
    })
    .wide(),
    Column::new("Selector", "string", |o, _| selector(at(o, "/spec/jobTemplate/spec/selector")).into())
        .wide(),
];

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        set_if_zero(spec, "concurrencyPolicy", "Allow");
        set_default(spec, "suspend", false);
        set_default(spec, "successfulJobsHistoryLimit", 3);
        set_default(spec, "failedJobsHistoryLimit", 1);
        default_job_template_spec(child(child(spec, "jobTemplate"), "spec"));
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.extend(self.validate_update(context, object, &json!({})));
        let name = text(object, "/metadata/name");
        if name.len() > NAME_LENGTH_MAX {
            let detail = format!("must be no more than {NAME_LENGTH_MAX} characters");
            errors.invalid("metadata.name", &name.into(), detail);
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if context.subresource == "status" {
            return errors.into_vec();
        }
        schedule(&mut errors, new);
        let spec = at(new, "/spec");
        let policies = ["Allow", "Forbid", "Replace"];
        errors.one_of("spec.concurrencyPolicy", at(spec, "/concurrencyPolicy"), &policies);
        for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
            errors.not_negative(format!("spec.{key}"), at(spec, &format!("/{key}")));
        }
        if present(spec, "/jobTemplate/spec/manualSelector") && flag(spec, "/jobTemplate/spec/manualSelector")
        {
            let supported = ["false", "nil"];
            errors.not_supported("spec.jobTemplate.spec.manualSelector", &json!(true), &supported);
        }
        errors.extend(validate_job_spec(at(spec, "/jobTemplate/spec"), "spec.jobTemplate.spec"));
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

fn schedule(errors: &mut Errors, object: &Value) {
    let schedule = at(object, "/spec/schedule");
    let spec = schedule.as_str().unwrap_or("");
    if spec.is_empty() {
        errors.required("spec.schedule", "");
    } else if spec.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid("spec.schedule", schedule, detail);
    } else if let Err(why) = check_schedule(spec) {
        errors.invalid("spec.schedule", schedule, why);
    }
    let zone = at(object, "/spec/timeZone");
    let Some(name) = zone.as_str() else { return };
    if name.is_empty() {
        errors.invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string");
    } else if name.eq_ignore_ascii_case("local") {
        errors.invalid(
            "spec.timeZone",
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    } else if jiff::tz::TimeZone::get(name).is_err() {
        errors.invalid("spec.timeZone", zone, format!("unknown time zone {name}"));
    }
}

/// Five cron fields, or one of the `@` words.
fn check_schedule(schedule: &str) -> Result<(), String> {
    if let Some(word) = schedule.strip_prefix('@') {
        let every = word.strip_prefix("every ");
        let known =
            matches!(word, "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly");
        return match every {
            Some(duration) if duration.starts_with(|c: char| c.is_ascii_digit()) => Ok(()),
            _ if known => Ok(()),
            _ => Err(format!("unrecognized descriptor: {schedule}")),
        };
    }
    const MONTHS: &[&str] =
        &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let fields: Vec<_> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let ranges: [(i64, i64, &[&str]); 5] =
        [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];
    for (field, (low, high, names)) in fields.into_iter().zip(ranges) {
        for part in field.split(',') {
            check_part(part, low, high, names)?;
        }
    }
    Ok(())
}

/// `*`, `n`, `n-m`, each with an optional `/step`.
fn check_part(part: &str, low: i64, high: i64, names: &[&str]) -> Result<(), String> {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    let number = |text: &str| -> Result<i64, String> {
        if let Some(i) = names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(low + i as i64);
        }
        text.parse().map_err(|_| {
            format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
        })
    };
    if step.map(number).transpose()? == Some(0) {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let (start, end) = match range.split_once('-') {
        Some((start, end)) => (number(start)?, number(end)?),
        None => (number(range)?, number(range)?),
    };
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {part}"));
    }
    if end > high {
        return Err(format!("end of range ({end}) above maximum ({high}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    Ok(())
}

fn suspend(object: &Value) -> &'static str {
    match at(object, "/spec/suspend").as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    }
}

fn last_schedule(object: &Value, now: i64) -> String {
    match at(object, "/status/lastScheduleTime") {
        Value::Null => NONE.to_owned(),
        time => since(time, now),
    }
}
