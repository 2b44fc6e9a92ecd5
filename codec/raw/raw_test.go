package raw

import (
	"testing"

	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) {
	codectest.Run(t, Format, codectest.Headless(), codectest.Size(func(s int64) int64 { return s }))
}
