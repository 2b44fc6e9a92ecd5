// Package catalog says which images a store holds.
//
// An image comes from one of two places:
//
//   - An entry: the object catalog/NAME.json names the image's disks, their
//     formats and what is known of the image. The format is [Entry].
//   - Adoption: an object NAME.EXT that lies directly in the store's folder is
//     image NAME with disk 0. NAME-0.EXT, NAME-1.EXT and so on are the disks of
//     one image NAME, if there is a NAME-0: a lone debian-12.qcow2 is the image
//     debian-12. EXT is one of the extensions the catalog was told; other
//     objects are left alone. An entry hides adopted objects of its name.
//
// An image whose entry or objects contradict each other is listed too, with
// the reason in Image.Err, so that one broken image never hides the others.
//
// [Catalog.Refresh] lists the store anew and swaps the whole view at once;
// listing reads no entry and opens no image, so ten thousand images cost two
// listings. Entries are read when they are looked up, and kept while their
// version stands. A Catalog is safe for concurrent use.
package catalog
