package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
)

// A spread is what several rounds gave.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	return spread{median(values), slices.Min(values), slices.Max(values)}
}

// median is the middle value, the upper one of two.
func median[T cmp.Ordered](values []T) T {
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

// A result is what one rival did in one case.
type result struct {
	Part  string `json:"part"`
	Case  string `json:"case"`
	Rival string `json:"rival"`

	Seconds *spread `json:"seconds,omitempty"`
	// Ratio is the rival's time over that of imagefs in the same round: above 1,
	// imagefs is faster. Goal is the least that the project wants.
	Ratio *spread `json:"ratio,omitempty"`
	Goal  float64 `json:"goal,omitempty"`

	PerSecond float64 `json:"per_second,omitempty"` // of Unit, by the median
	Unit      string  `json:"unit,omitempty"`
	CPU       float64 `json:"cpu_seconds"`                        // user and system of all its processes, median
	RSS       int64   `json:"peak_rss_bytes"`                     // greatest of all rounds
	Fetched   int64   `json:"fetched_bytes,omitempty"`            // sent by the store, median
	Overhead  float64 `json:"fetched_over_needed,omitempty"`      // Fetched over the bytes that were wanted
	Most      float64 `json:"fetched_over_needed_goal,omitempty"` // the project wants no more
	Blank     string  `json:"blank_because_of,omitempty"`         // why there is no time
	Note      string  `json:"note,omitempty"`
}

// resultOf is the result of a rival from the laps of its rounds. Those of
// imagefs, in the same rounds, are what it is compared with.
func resultOf(r result, laps, ours []lap, amount float64, needed int64) result {
	seconds, ratios := make([]float64, len(laps)), make([]float64, len(laps))
	cpu, fetched, over := make([]float64, len(laps)), make([]int64, len(laps)), make([]float64, len(laps))
	for i, l := range laps {
		seconds[i], cpu[i], fetched[i] = l.seconds, l.cpu, l.fetched
		r.RSS = max(r.RSS, l.rss)
		if ours != nil {
			ratios[i] = l.seconds / ours[i].seconds
		}
		if n := cmp.Or(l.needed, needed); n > 0 {
			over[i] = float64(l.fetched) / float64(n)
		}
	}
	s := spreadOf(seconds)
	r.Seconds, r.CPU, r.Fetched, r.Overhead = &s, median(cpu), median(fetched), median(over)
	if ours != nil {
		s := spreadOf(ratios)
		r.Ratio = &s
	}
	if amount > 0 {
		r.PerSecond = amount / s.Median
	}
	return r
}

const rowForm = "  %-30s %9s %9s %9s %8s %7s %7s %6s %8s %8s %15s %8s\n"

// head prints the title of a part and what the columns are.
func head(w io.Writer, title string) {
	fmt.Fprintf(w, "\n%s\n", title)
	fmt.Fprintf(w, rowForm, "", "median s", "min", "max", "ratio", "min", "max", "goal", "CPU s", "RSS MiB", "speed", "fetched")
}

// printCase prints the results of one case as lines of a table. What misses its
// goal has a star.
func printCase(w io.Writer, results []result) {
	if len(results) == 0 {
		return
	}
	fmt.Fprintln(w, " "+results[0].Case)
	for _, r := range results {
		if r.Blank != "" {
			fmt.Fprintf(w, "  %-30s -  %s\n", r.Rival, r.Blank)
			continue
		}
		ratio, least, most, goal, speed, over := "", "", "", "", "", ""
		if r.Ratio != nil {
			ratio, least, most = fmt.Sprintf("%.2f", r.Ratio.Median), fmt.Sprintf("%.2f", r.Ratio.Min), fmt.Sprintf("%.2f", r.Ratio.Max)
			if r.Goal > 0 {
				goal = fmt.Sprintf("%.2f", r.Goal)
				if r.Ratio.Median < r.Goal {
					goal += "*"
				}
			}
		}
		if r.PerSecond > 0 {
			speed = fmt.Sprintf("%.0f %s", r.PerSecond, r.Unit)
		}
		if r.Overhead > 0 {
			over = fmt.Sprintf("x%.2f", r.Overhead)
			if r.Most > 0 && r.Overhead > r.Most {
				over += "*"
			}
		}
		fmt.Fprintf(w, rowForm, r.Rival, seconds(r.Seconds.Median), seconds(r.Seconds.Min), seconds(r.Seconds.Max),
			ratio, least, most, goal, fmt.Sprintf("%.2f", r.CPU), fmt.Sprintf("%.0f", float64(r.RSS)/(1<<20)), speed, over)
		if r.Note != "" {
			fmt.Fprintf(w, "  %-30s    %s\n", "", r.Note)
		}
	}
}

func seconds(s float64) string { return fmt.Sprintf("%.3f", s) }

// A report is a whole run, as JSON.
type report struct {
	Machine machine  `json:"machine"`
	Size    int64    `json:"guest_bytes"`
	Rounds  int      `json:"rounds"`
	Rate    int64    `json:"bytes_per_second_of_connection,omitempty"`
	Results []result `json:"results"`
}

func (r *report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
