// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// Marks every write to the protected disks when it is issued, and knows which of them are in flight.
//
// User space reads and clears the marks; the byte-for-byte layout of `struct control` and of the marks is
// described, and checked against this file by a test, in ../ebpf/layout.rs. Built by scripts/build-bpf.
//
// A mark belongs to a generation, 0 or 1: whether the number of flips is even or odd. User space ends a
// generation by raising that number and then waits until nobody is counted in under the old one; from then on
// its marks are still.
//
//     count in under g (full barrier) → is g still active? → mark → count out (full barrier)
//
// Counts are per generation and CPU. A program that finds the generation changed counts itself out and starts
// over, so no mark can reach a generation whose counts were seen at zero after the change.
//
// A completion frees the request's entry among those in flight; the write was marked when it was issued, and user
// space reads nothing while writes of before its last flip are in flight. Only one that has no entry, since it was
// issued before these programs were there or when there was no room, is marked now, and so are parts of one.
//
// The kernel skips a tracepoint program on a CPU where it is already running, and counts that. It never does at the
// issue: programs run with preemption off, and in interrupts no request is issued (blk_mq_run_hw_queue warns of those
// who try); user space checks the kernel's count nevertheless. It may at a completion, when an interrupt completes
// a request in the midst of another one's completion. The skipped one's entry then stays until the request is issued
// again or user space sees the disks without a write in flight: what is said to be in flight may be complete, never
// the other way round.
//
// What cannot be marked exactly sets the disk's `overflow` flag, which means: anything may have been written.
// Reads, flushes and pass-through commands do not mark; the contents of the latter are unknown to the kernel.

#include "kernel.h"

#define DISKS 64
#define CPUS 1024
#define TABLE 1024    /* entries of the disk table */
#define PROBES 8      /* of them, those in a row where a disk may be */
#define BUCKETS 2048
#define BUCKET_ENTRIES 8 /* one cache line */
#define BIOS 4096     /* of one discard; drivers merge at most a few hundred */
#define ATTEMPTS 8    /* to count in; each needs another flip in between to fail */

enum event { ISSUED = 0, COMPLETED = 1 };

struct control {
	__u64 header[16]; /* of user space */
	__u64 flips;
	__u64 unknown;    /* writes that may be in flight although `inflight` lacks them */
	__u64 pad[6];
	struct { __u64 header[4], overflow[2], pad[2]; } disk[DISKS];
	struct { __u64 inside[2], pad[6]; } cpu[CPUS]; /* programs counted in, by generation */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

/* All marks of all disks; sized by the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} marks SEC(".maps");

struct disk {
	__u64 dev;         /* major << 20 | minor; 0 = no disk */
	__u64 plane[2][2]; /* [event][generation]: first word of its bits in `marks` */
	__u64 summary;     /* from there to its summary, one bit for each word of bits */
	__u64 granules;
	__u64 shift;       /* log2 of bytes per granule */
	__u64 slot;        /* in control.disk */
};

/* Protected disks, by a hash of the device number. Quicker than a BPF hash, and every request is looked up. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TABLE);
	__type(key, __u32);
	__type(value, struct disk);
} disks SEC(".maps");

/*
 * Writes in flight: what tells the request from others | generation, 0 = free. One request is issued or completed by one
 * CPU at a time, so its entry has one writer, and user space, which frees those of the ended generation when nothing is
 * in flight. Not a BPF hash, whose bucket locks refuse an interrupt that meets them taken.
 */
struct bucket { __u64 entry[BUCKET_ENTRIES]; };
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, struct bucket);
} inflight SEC(".maps");

/* A run of granules to mark in one plane. */
struct run {
	__u64 first, last;
	__u32 bits, summary;
	__u32 failed;
};

/* Adds with a full barrier on every CPU: using the result makes it the fetching, fully ordered instruction. */
static __always_inline void add_ordered(__u64 *count, __s64 by)
{
	__u64 was = __sync_fetch_and_add(count, by);
	asm volatile("" : : "r"(was));
}

/* Sets bits in a word of `marks`; false if there is no such word. Most bits are set already: look first. */
static __always_inline int set_bits(__u32 word, __u64 mask, int *changed)
{
	__u64 *bits = bpf_map_lookup_elem(&marks, &word);
	if (!bits)
		return 0;
	*changed = (*(volatile __u64 *)bits & mask) != mask;
	if (*changed)
		__sync_fetch_and_or(bits, mask);
	return 1;
}

/* The bits of a run in the nth of its words. */
static __always_inline __u64 mask_of(const struct run *run, __u32 n)
{
	__u64 mask = ~0ULL;

	if (n == 0)
		mask <<= run->first & 63;
	if ((run->first >> 6) + n == run->last >> 6)
		mask &= ~0ULL >> (63 - (run->last & 63));
	return mask;
}

/* Marks the nth word of a run. Returns 1 to stop. */
static long mark_word(__u32 n, struct run *run)
{
	__u64 word = (run->first >> 6) + n, mask = mask_of(run, n);
	int changed = 0;

	if (!set_bits(run->bits + word, mask, &changed) ||
	    (changed && !set_bits(run->summary + (word >> 6), 1ULL << (word & 63), &changed))) {
		run->failed = 1;
		return 1;
	}
	return 0;
}

/* The granules of `bytes` bytes (not 0) from `sector` on. */
static __always_inline struct run run_of(const struct disk *disk, enum event event, __u32 g, __u64 sector,
					 __u64 bytes)
{
	__u64 start = sector << 9, plane = disk->plane[event][g & 1];

	return (struct run){
		.first = start >> disk->shift,
		.last = (start + bytes - 1) >> disk->shift,
		.bits = plane,
		.summary = plane + disk->summary,
	};
}

/* Marks `bytes` bytes from `sector`. False if not all of it could be. */
static __always_inline int mark_bytes(const struct disk *disk, enum event event, __u32 g, __u64 sector, __u64 bytes)
{
	struct run run = run_of(disk, event, g, sector, bytes);
	__u64 words = (run.last >> 6) - (run.first >> 6) + 1;

	if (bytes == 0)
		return 1;
	if (run.last >= disk->granules) /* The disk has grown since it was measured. */
		return 0;
	if (words == 1)
		mark_word(0, &run);
	else if (bpf_loop(words, mark_word, &run, 0) != (long)words)
		return 0;
	return !run.failed;
}

/* A walk along the bios of one request: a discard may hold several ranges. */
struct walk {
	const struct disk *disk;
	__u64 bio;
	__u32 event, g;
	__u32 failed;
};

static long mark_bio(__u32 n, struct walk *walk)
{
	struct bio *bio = (struct bio *)walk->bio;
	__u32 bytes;
	__u64 sector;

	if (!bio)
		return 1;
	sector = BPF_CORE_READ(bio, bi_iter.bi_sector);
	bytes = BPF_CORE_READ(bio, bi_iter.bi_size);
	if (!mark_bytes(walk->disk, walk->event & 1, walk->g, sector, bytes)) {
		walk->failed = 1;
		return 1;
	}
	walk->bio = (__u64)BPF_CORE_READ(bio, bi_next);
	return 0;
}

/* Marks what a request covers. False if not all of it could be. */
static __always_inline int mark_request(struct request *rq, const struct disk *disk, enum event event, __u32 g,
					__u32 bytes)
{
	struct walk walk = { .disk = disk, .event = event, .g = g };

	switch (rq->cmd_flags & REQ_OP_MASK) {
	case REQ_OP_WRITE:
	case REQ_OP_WRITE_ZEROES:
		return mark_bytes(disk, event, g, rq->__sector, bytes);
	case REQ_OP_DISCARD:
	case REQ_OP_SECURE_ERASE:
		walk.bio = (__u64)rq->bio;
		bpf_loop(BIOS, mark_bio, &walk, 0);
		return !walk.failed && !walk.bio;
	default: /* Zones and operations yet to be invented: anywhere. */
		return 0;
	}
}

/* Counts in under the active generation. Returns it, or 2 if that failed. */
static __always_inline __u32 count_in(struct control *c, __u32 cpu)
{
	for (int i = 0; i < ATTEMPTS; i++) {
		__u64 g = *(volatile __u64 *)&c->flips & 1, now;
		add_ordered(&c->cpu[cpu].inside[g], 1);
		now = *(volatile __u64 *)&c->flips & 1;
		if (now == g) {
			/*
			 * Hide from the compiler that both are equal: the marks are then addressed by this
			 * second load, so no CPU can look at them before it.
			 */
			asm volatile("" : "+r"(now));
			return now & 1;
		}
		add_ordered(&c->cpu[cpu].inside[g], -1);
	}
	return 2;
}

static __always_inline struct bucket *bucket_of(__u64 rq)
{
	__u32 key = ((rq >> 6) * 0x9e3779b97f4a7c15ULL) >> 53;
	_Static_assert(BUCKETS == 1 << (64 - 53), "the hash has as many values as there are buckets");
	return bpf_map_lookup_elem(&inflight, &key);
}

/* Finds the entry of a request, or else a free one; BUCKET_ENTRIES if there is neither. */
static __always_inline __u32 find(const struct bucket *bucket, __u64 rq, __u64 *found)
{
	__u32 at = BUCKET_ENTRIES;

	*found = 0;
	for (__u32 i = 0; i < BUCKET_ENTRIES; i++) {
		__u64 entry = *(volatile __u64 *)&bucket->entry[i];
		if ((entry & ~1ULL) == rq) {
			*found = entry;
			return i;
		}
		if (!entry)
			at = i;
	}
	return at;
}

/*
 * Notes that a write of generation g is in flight. If the request has an entry, then what it was issued for before is
 * complete, or was given back by the driver.
 */
static __always_inline void begin(struct control *c, __u64 rq, __u32 g)
{
	struct bucket *bucket = bucket_of(rq);
	__u64 was;

	/* Others may take a free entry first, a few times over. */
	for (int i = 0; bucket && i < ATTEMPTS; i++) {
		__u32 at = find(bucket, rq, &was);
		if (at == BUCKET_ENTRIES)
			break;
		if (__sync_val_compare_and_swap(&bucket->entry[at & (BUCKET_ENTRIES - 1)], was, rq | g) == was)
			return;
	}
	__sync_fetch_and_add(&c->unknown, 1);
}

/* Notes that a write is no longer in flight; false if it has no entry. */
static __always_inline int end(__u64 rq)
{
	struct bucket *bucket = bucket_of(rq);
	__u64 was;
	__u32 at;

	if (!bucket)
		return 0;
	at = find(bucket, rq, &was);
	if (!was || at >= BUCKET_ENTRIES)
		return 0;
	/* If user space was first, the entry may be another's by now. */
	__sync_val_compare_and_swap(&bucket->entry[at], was, 0);
	return 1;
}

/* The protected disk that a request is for, or null. */
static __always_inline const struct disk *disk_of(struct request *rq)
{
	struct request_queue *q = rq->q;
	struct gendisk *disk;
	__u32 dev, first;

	/* Vendor kernels have bpf_loop, which needs 5.17, above a block layer from before 5.15. */
	if (bpf_core_field_exists(q->disk))
		disk = q->disk;
	else
		disk = ((struct request___before_5_15 *)rq)->rq_disk;
	dev = (__u32)disk->major << 20 | (__u32)disk->first_minor;
	first = dev * 0x9e3779b1 >> 22;
	_Static_assert(TABLE == 1 << (32 - 22), "the hash has as many values as the table has entries");
	for (__u32 i = 0; i < PROBES; i++) {
		__u32 index = (first + i) % TABLE;
		const struct disk *entry = bpf_map_lookup_elem(&disks, &index);
		if (!entry || !entry->dev)
			return 0;
		if (entry->dev == dev)
			return entry;
	}
	return 0;
}

static __always_inline int may_write(const struct request *rq)
{
	switch (rq->cmd_flags & REQ_OP_MASK) {
	case REQ_OP_READ:
	case REQ_OP_FLUSH:
	case REQ_OP_DRV_IN:
	case REQ_OP_DRV_OUT:
		return 0;
	}
	return 1;
}

/* Marks what a request covers; at its issue notes, too, that it is in flight. */
static __always_inline void mark(struct control *c, struct request *rq, const struct disk *disk, enum event event,
				 __u32 bytes, __u64 address)
{
	__u32 cpu = bpf_get_smp_processor_id(), slot = disk->slot & (DISKS - 1), g;

	g = cpu < CPUS ? count_in(c, cpu) : 2;
	if (g > 1) { /* Not counted in, so both generations must hear of it. */
		__sync_fetch_and_add(&c->unknown, 1);
		*(volatile __u64 *)&c->disk[slot].overflow[0] = 1;
		*(volatile __u64 *)&c->disk[slot].overflow[1] = 1;
		return;
	}
	cpu &= CPUS - 1;
	if (!mark_request(rq, disk, event, g, bytes))
		*(volatile __u64 *)&c->disk[slot].overflow[g] = 1;
	if (event == ISSUED)
		begin(c, address, g);
	add_ordered(&c->cpu[cpu].inside[g], -1);
}

/* What tells requests apart: their distance from a fixed address, since a pointer is no number to the verifier. */
static __always_inline __u64 address_of(const struct request *rq, const struct control *c)
{
	return (char *)rq - (char *)c;
}

/* Arguments: struct request *rq. */
SEC("tp_btf/block_rq_issue") int issue(__u64 *args)
{
	struct request *rq = (struct request *)args[0];
	const struct disk *disk;
	struct control *c;
	__u32 zero = 0;

	if (!may_write(rq) || !(disk = disk_of(rq)) || !(c = bpf_map_lookup_elem(&control, &zero)))
		return 0;
	mark(c, rq, disk, ISSUED, rq->__data_len, address_of(rq, c));
	return 0;
}

/* Arguments: struct request *rq, blk_status_t error, unsigned int bytes; fewer bytes than it has left are a part. */
SEC("tp_btf/block_rq_complete") int complete(__u64 *args)
{
	struct request *rq = (struct request *)args[0];
	__u32 bytes = args[2], zero = 0;
	const struct disk *disk;
	struct control *c;

	if (!may_write(rq) || !(disk = disk_of(rq)) || !(c = bpf_map_lookup_elem(&control, &zero)))
		return 0;
	if (bytes < rq->__data_len || !end(address_of(rq, c)))
		mark(c, rq, disk, COMPLETED, bytes, 0);
	return 0;
}

/* The kernel lets only GPL-compatible programs use tracing helpers. */
char _license[] SEC("license") = "Dual MIT/GPL";
