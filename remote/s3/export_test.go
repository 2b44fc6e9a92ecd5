package s3

// SetPartSizes makes uploads of more than single bytes go in parts of at
// least part bytes.
func (s *Store) SetPartSizes(single, part int64) { s.maxSingle, s.minPart = single, part }

// PartSize is partSize.
var PartSize = partSize
