// LoadGen behind plain C functions. Rust is called back, and never unwinds into C++; C++ exceptions never leave this file.

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <future>
#include <string>
#include <vector>

#include "loadgen.h"
#include "logging.h"
#include "query_sample.h"
#include "query_sample_library.h"
#include "system_under_test.h"
#include "test_settings.h"

namespace mlperf {
// version.h pulls in the logger; these two are all that is wanted of it.
const std::string& LoadgenVersion();
const std::string& LoadgenGitRevision();
}  // namespace mlperf

extern "C" {

struct calotype_loadgen_sample {
  uint64_t id;
  uint64_t index;
};

struct calotype_loadgen_settings {
  const char* model;
  int32_t scenario;
  int32_t mode;
  const char* user_conf;
  const char* audit_conf;
  const char* out;
  int32_t trace;
  int32_t has_seeds;
  uint64_t seeds[3];
};

// What LoadGen made of its configuration.
struct calotype_loadgen_values {
  uint64_t min_duration_ms;
  uint64_t max_duration_ms;
  uint64_t min_query_count;
  uint64_t max_query_count;
  uint64_t performance_sample_count;
  uint64_t samples_per_query;
  uint64_t target_latency_ns;
  double target_qps;
  double target_latency_percentile;
};

struct calotype_loadgen_calls {
  void* data;
  const char* system_name;
  const char* library_name;
  uint64_t total;
  uint64_t performance;
  // Not zero: the run is over.
  int32_t (*issue)(void*, const calotype_loadgen_sample*, size_t);
  void (*flush)(void*);
  void (*load)(void*, const uint64_t*, size_t);
  void (*unload)(void*, const uint64_t*, size_t);
  // Zero: the values are not what was expected, and nothing is run.
  int32_t (*configured)(void*, const calotype_loadgen_values*);
};

enum {
  CALOTYPE_LOADGEN_DONE = 0,
  CALOTYPE_LOADGEN_ENDED = 1,
  CALOTYPE_LOADGEN_CONFIGURATION = 2,
  CALOTYPE_LOADGEN_THROWN = 3,
  CALOTYPE_LOADGEN_REFUSED = 4,
};
}

namespace {

// Thrown through LoadGen where the system under test has given up: LoadGen has no other way to stop issuing.
struct Ended {};

class System : public mlperf::SystemUnderTest {
 public:
  explicit System(const calotype_loadgen_calls& calls)
      : calls_(calls), name_(calls.system_name) {}

  const std::string& Name() override { return name_; }

  void IssueQuery(const std::vector<mlperf::QuerySample>& samples) override {
    std::vector<calotype_loadgen_sample> all;
    all.reserve(samples.size());
    for (const auto& sample : samples) {
      all.push_back({static_cast<uint64_t>(sample.id),
                     static_cast<uint64_t>(sample.index)});
    }
    if (calls_.issue(calls_.data, all.data(), all.size()) != 0) {
      // In this order: the log's thread must not write to files that unwinding closes.
      mlperf::AbortTest();
      throw Ended();
    }
  }

  void FlushQueries() override { calls_.flush(calls_.data); }

 private:
  const calotype_loadgen_calls& calls_;
  const std::string name_;
};

class Library : public mlperf::QuerySampleLibrary {
 public:
  explicit Library(const calotype_loadgen_calls& calls)
      : calls_(calls), name_(calls.library_name) {}

  const std::string& Name() override { return name_; }
  size_t TotalSampleCount() override { return calls_.total; }
  size_t PerformanceSampleCount() override { return calls_.performance; }

  void LoadSamplesToRam(
      const std::vector<mlperf::QuerySampleIndex>& samples) override {
    Hand(calls_.load, samples);
  }

  void UnloadSamplesFromRam(
      const std::vector<mlperf::QuerySampleIndex>& samples) override {
    Hand(calls_.unload, samples);
  }

 private:
  void Hand(void (*call)(void*, const uint64_t*, size_t),
            const std::vector<mlperf::QuerySampleIndex>& samples) {
    std::vector<uint64_t> all(samples.begin(), samples.end());
    call(calls_.data, all.data(), all.size());
  }

  const calotype_loadgen_calls& calls_;
  const std::string name_;
};

const char* const kScenarios[] = {"SingleStream", "MultiStream", "Server",
                                  "Offline"};

calotype_loadgen_values ValuesOf(const mlperf::TestSettings& settings) {
  calotype_loadgen_values values = {};
  values.min_duration_ms = settings.min_duration_ms;
  values.max_duration_ms = settings.max_duration_ms;
  values.min_query_count = settings.min_query_count;
  values.max_query_count = settings.max_query_count;
  values.performance_sample_count = settings.performance_sample_count_override;
  values.samples_per_query = 1;
  switch (settings.scenario) {
    case mlperf::TestScenario::SingleStream:
      values.target_latency_ns =
          static_cast<uint64_t>(settings.single_stream_expected_latency_ns);
      values.target_latency_percentile =
          settings.single_stream_target_latency_percentile;
      break;
    case mlperf::TestScenario::MultiStream:
      values.target_latency_ns =
          static_cast<uint64_t>(settings.multi_stream_expected_latency_ns);
      values.target_latency_percentile =
          settings.multi_stream_target_latency_percentile;
      values.samples_per_query = settings.multi_stream_samples_per_query;
      break;
    case mlperf::TestScenario::Server:
      values.target_qps = settings.server_target_qps;
      values.target_latency_ns = settings.server_target_latency_ns;
      values.target_latency_percentile =
          settings.server_target_latency_percentile;
      break;
    case mlperf::TestScenario::Offline:
      values.target_qps = settings.offline_expected_qps;
      break;
  }
  return values;
}

int32_t Run(const calotype_loadgen_settings& given,
            const calotype_loadgen_calls& calls) {
  mlperf::TestSettings settings;
  settings.scenario = static_cast<mlperf::TestScenario>(given.scenario);
  if (settings.FromConfig(given.user_conf, given.model,
                          kScenarios[given.scenario], 1) != 0) {
    return CALOTYPE_LOADGEN_CONFIGURATION;
  }
  settings.mode = static_cast<mlperf::TestMode>(given.mode);
  if (given.has_seeds) {
    settings.qsl_rng_seed = given.seeds[0];
    settings.sample_index_rng_seed = given.seeds[1];
    settings.schedule_rng_seed = given.seeds[2];
  }
  const calotype_loadgen_values values = ValuesOf(settings);
  if (calls.configured(calls.data, &values) == 0) {
    return CALOTYPE_LOADGEN_REFUSED;
  }
  mlperf::LogSettings log;
  log.log_output.outdir = given.out;
  log.enable_trace = given.trace != 0;
  System system(calls);
  Library library(calls);
  mlperf::StartTest(&system, &library, settings, log, given.audit_conf);
  return CALOTYPE_LOADGEN_DONE;
}

}  // namespace

extern "C" {

int32_t calotype_loadgen_run(const calotype_loadgen_settings* settings,
                             const calotype_loadgen_calls* calls, char* message,
                             size_t message_size) {
  try {
    return Run(*settings, *calls);
  } catch (const Ended&) {
    return CALOTYPE_LOADGEN_ENDED;
  } catch (const std::exception& error) {
    if (message_size > 0) {
      std::strncpy(message, error.what(), message_size - 1);
      message[message_size - 1] = 0;
    }
    return CALOTYPE_LOADGEN_THROWN;
  } catch (...) {
    return CALOTYPE_LOADGEN_THROWN;
  }
}

void calotype_loadgen_complete(uint64_t id, const uint8_t* data, size_t size) {
  mlperf::QuerySampleResponse response(static_cast<mlperf::ResponseId>(id),
                                       reinterpret_cast<uintptr_t>(data), size);
  mlperf::QuerySamplesComplete(&response, 1);
}

// Waits until what this thread has logged is written: AbortTest flushes its own thread alone, and what others have logged would go to the
// standard error stream.
void calotype_loadgen_flush() {
  std::promise<void> written;
  mlperf::logging::LogDetail(
      [&](mlperf::logging::AsyncDetail&) { written.set_value(); });
  written.get_future().wait();
}

const char* calotype_loadgen_version() {
  return mlperf::LoadgenVersion().c_str();
}

const char* calotype_loadgen_revision() {
  return mlperf::LoadgenGitRevision().c_str();
}

// Ends the process without C++'s destructors: that of LoadGen's logger ends a process whose log thread runs with SIGABRT.
void calotype_loadgen_leave(int32_t code) { _exit(code); }
}
