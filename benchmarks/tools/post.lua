-- Load by wrk: POSTs the lines of a file in turn, as JSON. Prints what was measured as a line of JSON.
-- wrk -s post.lua URL -- BODIES
local bodies, place = {}, 0

function init(arguments)
  for line in io.lines(arguments[1]) do bodies[#bodies + 1] = line end
  place = math.random(#bodies)
end

wrk.method = "POST"
wrk.headers["content-type"] = "application/json"

function request()
  place = place % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[place])
end

function done(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    '\n{"requests_per_second": %.2f, "p50_ms": %.4f, "p95_ms": %.4f, "p99_ms": %.4f, "errors": %d}\n',
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    failed.connect + failed.read + failed.write + failed.status + failed.timeout))
end
