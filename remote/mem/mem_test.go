package mem_test

import (
	"testing"

	"imagefs/remote"
	"imagefs/remote/mem"
	"imagefs/remote/remotetest"
)

func TestStore(t *testing.T) {
	remotetest.Run(t, func(*testing.T) remote.Store { return mem.New() })
}
