//! Lists of timesteps and noise levels that take the place of a spacing, as few-step students are trained on.

use super::{Curve, SamplerConfig, SamplerError, SamplerKind};

/// Checks a configuration's lists.
///
/// # Errors
/// [`SamplerError::Visits`] for both at once, a sampler that takes none, a list that is not in descending order or leads beyond
/// the schedule, and fractions where timesteps are whole.
pub(super) fn check(config: &SamplerConfig) -> Result<(), SamplerError> {
    let (timesteps, sigmas) = (&config.timesteps, &config.sigmas);
    let problem = match (timesteps.is_empty(), sigmas.is_empty()) {
        (true, true) => None,
        (false, false) => Some("takes a list of timesteps or of noise levels, not both".to_owned()),
        (false, true) => timesteps_problem(config),
        (true, false) => sigmas_problem(config),
    };
    match problem {
        Some(problem) => Err(SamplerError::Visits { kind: config.kind.name(), problem }),
        None => Ok(()),
    }
}

/// Checks that as many steps are asked for as a list has.
///
/// # Errors
/// [`SamplerError::Visits`].
pub(super) fn check_steps(config: &SamplerConfig, steps: usize) -> Result<(), SamplerError> {
    match config.listed_steps() {
        Some(listed) if listed != steps => {
            let problem = format!("its list has {listed} steps, and {steps} were asked for: leave out one of both");
            Err(SamplerError::Visits { kind: config.kind.name(), problem })
        }
        _ => Ok(()),
    }
}

fn timesteps_problem(config: &SamplerConfig) -> Option<String> {
    let list = &config.timesteps;
    if !config.kind.settings().takes_timesteps() {
        return Some(format!(
            "takes no list of timesteps; those that do are {}",
            names(|kind| kind.settings().takes_timesteps())
        ));
    }
    if has_curve(config) {
        return Some(
            "a list of timesteps leaves no room for a curve of the noise levels: leave out one of both".to_owned(),
        );
    }
    let last = config.schedule.timesteps.saturating_sub(1) as f64;
    if let Some(beyond) = list.iter().find(|t| !(0.0..=last).contains(*t)) {
        return Some(format!("timestep {beyond} of its list is none of the schedule's, 0 to {last}"));
    }
    // Euler's and Heun's methods interpolate between two noise levels.
    let fractions = matches!(config.kind, SamplerKind::Euler(_) | SamplerKind::Heun(_));
    if let Some(fraction) = list.iter().find(|t| !fractions && t.fract() != 0.0) {
        return Some(format!("timestep {fraction} of its list has to be a whole number"));
    }
    not_descending(list)
}

fn sigmas_problem(config: &SamplerConfig) -> Option<String> {
    let list = &config.sigmas;
    if !config.kind.settings().takes_sigmas() {
        return Some(format!(
            "takes no list of noise levels; those that do are {}",
            names(|kind| kind.settings().takes_sigmas())
        ));
    }
    if has_curve(config) {
        return Some("a list of noise levels leaves no room for a curve of them: leave out one of both".to_owned());
    }
    if list.len() < 2 {
        return Some(
            "a list of noise levels has one more than there are steps: the level after the last step, usually 0"
                .to_owned(),
        );
    }
    if let Some(wrong) = list.iter().find(|sigma| !(0.0..f64::from(f32::MAX)).contains(*sigma)) {
        return Some(format!("noise level {wrong} of its list has to be a number of at least 0"));
    }
    not_descending(list)
}

fn has_curve(config: &SamplerConfig) -> bool {
    config.kind.clone().curve_mut().is_some_and(|curve| *curve != Curve::Timesteps)
}

fn not_descending(list: &[f64]) -> Option<String> {
    let pair = list.windows(2).find(|pair| pair[0] <= pair[1])?;
    Some(format!("its list has to descend from noise to image: {} stands before {}", pair[0], pair[1]))
}

fn names(takes: impl Fn(&SamplerKind) -> bool) -> String {
    let all = SamplerKind::all().into_iter().filter(|kind| takes(kind));
    all.map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::Sampler;
    use super::*;

    fn problem(name: &str, timesteps: &[f64], sigmas: &[f64]) -> String {
        let kind = SamplerKind::by_name(name).unwrap();
        let (timesteps, sigmas) = (timesteps.to_vec(), sigmas.to_vec());
        let config = SamplerConfig { kind, timesteps, sigmas, ..SamplerConfig::default() };
        let steps = config.listed_steps().unwrap();
        Sampler::new(&config, steps).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn lists_are_checked() {
        for (name, timesteps, sigmas, said) in [
            ("lcm", &[999.0, 749.0, 499.0, 249.0][..], &[][..], ""),
            ("euler", &[999.0, 250.5], &[], ""),
            ("euler", &[], &[14.6, 3.0, 0.0], ""),
            (
                "ddim",
                &[999.0],
                &[],
                "takes no list of timesteps; those that do are ddpm, dpm_multistep, euler, heun, lcm, tcd",
            ),
            ("lcm", &[], &[14.6, 0.0], "takes no list of noise levels; those that do are euler"),
            ("lcm", &[999.5], &[], "timestep 999.5 of its list is none of the schedule's, 0 to 999"),
            ("lcm", &[99.5], &[], "timestep 99.5 of its list has to be a whole number"),
            ("lcm", &[499.0, 499.0], &[], "499 stands before 499"),
            ("tcd", &[f64::NAN], &[], "timestep NaN"),
            ("euler", &[999.0], &[1.0, 0.0], "not both"),
            ("euler", &[], &[1.0, 2.0], "1 stands before 2"),
            ("euler", &[], &[2.0, -1.0], "noise level -1"),
            ("euler", &[], &[f64::INFINITY, 1.0], "noise level inf"),
            ("euler", &[], &[2.0], "one more than there are steps"),
        ] {
            let found = problem(name, timesteps, sigmas);
            assert!(if said.is_empty() { found.is_empty() } else { found.contains(said) }, "{name}: {found}");
        }
    }

    #[test]
    fn a_list_has_its_own_number_of_steps() {
        let kind = SamplerKind::by_name("lcm").unwrap();
        let config = SamplerConfig { kind, timesteps: vec![999.0, 749.0], ..SamplerConfig::default() };
        let error = Sampler::new(&config, 4).unwrap_err().to_string();
        assert!(error.contains("its list has 2 steps, and 4 were asked for"), "{error}");
        let curve = SamplerConfig {
            kind: serde_json::from_str(r#"{"name": "euler", "sigmas": {"curve": "karras"}}"#).unwrap(),
            ..config
        };
        assert!(curve.check().unwrap_err().to_string().contains("leaves no room for a curve"));
    }
}
