//go:build race

package codectest

// The race detector drops pooled values at random, and slows what is only
// sampled here by so much.
const (
	raceEnabled = true
	slow        = 4
)
