package vhdx

import (
	"testing"

	"imagefs/codec/codectest"
)

func TestConformance(t *testing.T) { codectest.Run(t, Format) }
