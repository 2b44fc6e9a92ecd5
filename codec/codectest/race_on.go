//go:build race

package codectest

const raceEnabled = true // the race detector drops pooled values at random
