/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * explore: what is left of an operation that was cut short.
 *
 *   explore [--op=NAME]… [--seed=HEX] [--states=N] [--kept] [--seconds=N] [--dir=DIR]
 *   explore --replay=NAME:HEX:STEPS
 *
 * An operation is run once on small images and its changes are recorded (record.h). Then every
 * state that a power cut could have left is made: each prefix of the recording; between barriers
 * subsets of the writes that were not synced, whole and torn. Each call that changes something
 * fails once (no space, I/O error; of a failed sync the writes may be lost for ever), and the
 * process is killed at each one. In every state the operation's promise must hold, and running it
 * again must finish it; that run may be cut short in turn.
 *
 * STEPS, as printed for a state that is wrong, are runs and states in turn: `run`, `fail7.EIO`,
 * `kill7` (h: half of that write was done), then `12.m5`: the first 12 events, of those not durable
 * the ones of this mask (a: all, 0: none, rSEED: some).
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "bytes.h"
#include "kept.h"
#include "ops.h"

static const struct op *const ops[] = {&op_merge, &op_flatten, &op_snap,     &op_create, &op_fill,
				       &op_guest, &op_resize,  &op_reparent, &op_repair, &op_recv,
				       &op_onto,  &op_drop,    NULL};

#define DEPTH 2	    /* how often a run that finishes is cut short again */
#define MASK_BITS 6 /* up to so many open decisions every combination is tried */
#define SEEN (1u << 16)

/* One run, or a failed one and the next, in one recording. */
struct session {
	struct fs base;
	struct tape tape;
	void *ctx;
	unsigned calls;
	bool ok; /* the last run succeeded */
};

struct job {
	const struct op *op;
	struct world w;
	uint64_t seed;
	struct rng rng; /* of the choice of states, apart from the scenario's own */
	bool thorough;	/* every call, every prefix; else a sample, and more scenarios */
	char steps[400];
	uint64_t seen[SEEN];
};

struct folder {
	char top[500], work[500], pool[500];
};

struct arguments {
	const struct op *op[16];
	int n;
	uint64_t seed;
	unsigned long states, seconds; /* whichever comes first */
	bool kept;		       /* more, until sums that are kept were believed */
	const char *dir;
	char *replay;
};

static struct {
	unsigned long scenarios, prefixes, subsets, faults, kills, again, twice;
} count;

static char *push_step(struct job *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static char *push_step(struct job *j, const char *fmt, ...)
{
	char *end = j->steps + strlen(j->steps);
	size_t room = sizeof(j->steps) - (size_t)(end - j->steps);
	int n = snprintf(end, room, "%s", end == j->steps ? "" : "/");
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(end + n, room - (size_t)n, fmt, ap);
	va_end(ap);
	return end;
}

static bool failed(struct job *j, const struct tape *t, unsigned n, struct choice c)
{
	printf("not ok: %s\n# %s\n", j->op->name, j->w.why);
	if (t)
		tape_print(t, n, c);
	printf("# again: explore --replay=%s:%" PRIx64 ":%s\n", j->op->name, j->seed, j->steps);
	fflush(stdout);
	return false;
}

static void session_free(struct session *s)
{
	fs_free(&s->base);
	tape_free(&s->tape);
	free(s->ctx);
	memset(s, 0, sizeof(*s));
}

static int one_run(struct job *j, struct session *s, struct fault f, bool again,
		   struct img_err *err)
{
	int rc;

	j->w.runs++;
	record_start(j->w.dir, j->w.pool, &s->base, &s->tape, f);
	rc = j->op->run(&j->w, s->ctx, again, err);
	s->calls = record_stop();
	s->ok = rc == 0;
	return rc;
}

/* The recording says the same as the folder: nothing was changed behind its back. */
static bool recorded_all(struct job *j, struct session *s)
{
	struct fs model, real;
	const char *why;

	fs_replay(&model, &s->base, &s->tape, s->tape.n, (struct choice){TAKE_ALL, 0});
	fs_load(&real, j->w.dir, j->w.pool);
	why = fs_compare(&model, &real);
	if (why)
		wrong(&j->w, "the recording is not what happened: %s", why);
	fs_free(&model);
	fs_free(&real);
	return !why;
}

static bool check_now(struct job *j, struct session *s, bool done, bool power, unsigned pos)
{
	struct when when = {done, power, pos, &s->tape};

	return j->op->check(&j->w, s->ctx, &when) && kept_holds(&j->w, &when);
}

/* Runs on BASE, which the folder need not hold yet; the result is checked. */
static bool record(struct job *j, struct session *s, const struct fs *base, bool again)
{
	struct img_err err = {0};

	memset(s, 0, sizeof(*s));
	fs_copy(&s->base, base);
	fs_store(base, j->w.dir, j->w.pool);
	s->ctx = j->op->begin ? j->op->begin(&j->w) : NULL;
	if (one_run(j, s, (struct fault){0}, again, &err) < 0)
		return wrong(&j->w, "%s fails: %d, %s",
			     again ? "running it again" : "the operation", err.code, err.msg);
	return recorded_all(j, s) && check_now(j, s, true, false, s->tape.n);
}

/* A run in which one call fails, and another one after it. */
static bool record_fault(struct job *j, struct session *s, const struct fs *base, struct fault f)
{
	struct img_err err = {0};
	bool full = f.errnum == ENOSPC || f.errnum == EDQUOT;

	memset(s, 0, sizeof(*s));
	fs_copy(&s->base, base);
	fs_store(base, j->w.dir, j->w.pool);
	s->ctx = j->op->begin ? j->op->begin(&j->w) : NULL;
	if (one_run(j, s, f, false, &err) == 0)
		return recorded_all(j, s) && check_now(j, s, true, false, s->tape.n);
	if (err.code != (full ? IMG_CANTCREAT : IMG_IO) && err.code != IMG_IO)
		return wrong(&j->w, "wrong exit code %d: %s", err.code, err.msg);
	if (!recorded_all(j, s) || !check_now(j, s, false, false, s->tape.n))
		return false;
	img_err_clear(&err);
	if (one_run(j, s, (struct fault){0}, true, &err) < 0)
		return wrong(&j->w, "running it again fails: %d, %s", err.code, err.msg);
	return recorded_all(j, s) && check_now(j, s, true, false, s->tape.n);
}

static bool seen_before(struct job *j, uint64_t h)
{
	uint64_t *slot = &j->seen[h % SEEN];

	h |= 1;
	if (*slot == h)
		return true;
	*slot = h;
	return false;
}

static bool cut_again(struct job *j, struct session *s, unsigned depth);

/* What is done in a state: the promise holds, another run finishes, and is itself cut short. */
static bool try_state(struct job *j, struct session *s, const struct fs *st, unsigned n,
		      struct choice c, unsigned depth)
{
	bool done = s->ok && n == s->tape.n;
	struct session next;
	bool ok;

	fs_store(st, j->w.dir, j->w.pool);
	if (!check_now(j, s, done, c.how != TAKE_ALL, n))
		return failed(j, &s->tape, n, c);
	if (done && !j->op->positional)
		return true;
	count.again++;
	char *end = push_step(j, "run");
	const bool unsure = j->w.unsure;

	j->w.unsure |= kept_removal_failed(&s->tape);
	ok = record(j, &next, st, true) || failed(j, &s->tape, n, c);
	if (ok && depth < DEPTH && rng_one_in(&j->rng, j->op->positional ? 25 : 5))
		ok = cut_again(j, &next, depth + 1);
	j->w.unsure = unsure;
	session_free(&next);
	if (ok)
		*end = '\0';
	return ok;
}

static bool one_state(struct job *j, struct session *s, unsigned n, struct choice c, unsigned depth)
{
	static const char how[] = {'a', '0', 'm', 'r'};
	char value[20] = "", *end;
	struct fs st;
	bool ok = true;

	fs_replay(&st, &s->base, &s->tape, n, c);
	if (!seen_before(j, fs_hash(&st) * 31 +
				    (j->op->positional || (s->ok && n == s->tape.n) ? n + 1 : 0))) {
		if (c.how >= TAKE_MASK)
			snprintf(value, sizeof(value), "%" PRIx64, c.value);
		end = push_step(j, "%u.%c%s", n, how[c.how], value);
		if (depth)
			count.twice++;
		else if (c.how == TAKE_ALL)
			count.prefixes++;
		else
			count.subsets++;
		ok = try_state(j, s, &st, n, c, depth);
		if (ok)
			*end = '\0';
	}
	fs_free(&st);
	return ok;
}

static unsigned open_decisions(struct session *s, unsigned n)
{
	struct fs st;
	unsigned k = fs_replay(&st, &s->base, &s->tape, n, (struct choice){TAKE_NONE, 0});

	fs_free(&st);
	return k;
}

static bool some_state(struct job *j, struct session *s, unsigned n, unsigned depth)
{
	return one_state(j, s, n, (struct choice){TAKE_RANDOM, rng_next(&j->rng) >> 32}, depth);
}

/* Everything that may be left just before event N: it is a barrier, so this holds what came before,
 * too. */
static bool before_barrier(struct job *j, struct session *s, unsigned n)
{
	unsigned k = open_decisions(s, n);
	bool ok = one_state(j, s, n, (struct choice){TAKE_NONE, 0}, 0);

	if (k <= (j->thorough ? MASK_BITS : MASK_BITS / 2))
		for (uint64_t m = 1; ok && m < 1u << k; m++)
			ok = one_state(j, s, n, (struct choice){TAKE_MASK, m}, 0);
	else
		for (unsigned i = 0; ok && i < u64_min(3 * k, j->thorough ? 24 : 8); i++)
			ok = some_state(j, s, n, 0);
	return ok;
}

static bool is_barrier(const struct tape *t, unsigned n)
{
	return n == t->n || t->ev[n].kind == EV_SYNC || t->ev[n].kind == EV_SYNC_DIR;
}

static bool explore_states(struct job *j, struct session *s)
{
	unsigned step = 1 + s->tape.n / (j->thorough ? 100 : 15);
	bool ok = true;

	for (unsigned n = 0; ok && n <= s->tape.n; n++) {
		if (rng_one_in(&j->rng, step) || n == s->tape.n)
			ok = one_state(j, s, n, (struct choice){TAKE_ALL, 0}, 0);
		if (ok && is_barrier(&s->tape, n) &&
		    (j->thorough || n == s->tape.n || !rng_one_in(&j->rng, 3)))
			ok = before_barrier(j, s, n);
	}
	return ok;
}

/* The run that was to finish is itself cut short. */
static bool cut_again(struct job *j, struct session *s, unsigned depth)
{
	bool ok = one_state(j, s, s->tape.n, (struct choice){TAKE_NONE, 0}, depth);

	for (int i = 0; ok && i < 4; i++) {
		unsigned n = rng_below(&j->rng, s->tape.n + 1);

		ok = i ? some_state(j, s, n, depth)
		       : one_state(j, s, n, (struct choice){TAKE_ALL, 0}, depth);
	}
	return ok;
}

static const char *fault_name(struct fault f)
{
	static char name[40];

	if (f.kind == FAULT_KILL)
		snprintf(name, sizeof(name), "kill%u%s", f.at, f.half ? "h" : "");
	else
		snprintf(name, sizeof(name), "fail%u.%s%s", f.at,
			 f.errnum == EIO      ? "EIO"
			 : f.errnum == ENOSPC ? "ENOSPC"
					      : "EDQUOT",
			 f.half ? "h" : "");
	return name;
}

/* Call F.AT fails. The states of both runs together: what the failed sync lost stays lost. */
static bool one_fault(struct job *j, const struct fs *base, struct fault f)
{
	char *end = push_step(j, "%s", fault_name(f));
	struct session s;
	bool ok = record_fault(j, &s, base, f);

	count.faults++;
	if (!ok)
		failed(j, &s.tape, s.tape.n, (struct choice){TAKE_ALL, 0});
	if (ok)
		ok = one_state(j, &s, s.tape.n, (struct choice){TAKE_NONE, 0}, 0);
	for (int i = 0; ok && i < (j->thorough ? 2 : 1); i++) {
		unsigned n = i ? rng_below(&j->rng, s.tape.n + 1) : s.tape.n;

		ok = some_state(j, &s, n, 0);
	}
	session_free(&s);
	if (ok)
		*end = '\0';
	return ok;
}

/* Where the recording S is when call CALL is about to be made. */
static unsigned position_of(const struct session *s, unsigned call)
{
	unsigned n = 0;

	while (n < s->tape.n && s->tape.ev[n].call < call)
		n++;
	return n;
}

/* A real SIGKILL in a process of its own. S is the recording of an undisturbed run. */
static bool one_kill(struct job *j, struct session *s, struct fault f)
{
	char *end = push_step(j, "%s", fault_name(f));
	unsigned n = position_of(s, f.at);
	struct session next;
	struct fs left;
	int status;
	pid_t pid;
	bool ok;

	count.kills++;
	fs_store(&s->base, j->w.dir, j->w.pool);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		struct tape t = {0};
		struct img_err err = {0};

		record_start(j->w.dir, j->w.pool, &s->base, &t, f);
		j->op->run(&j->w, s->ctx, false, &err);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		die("fork: %s", strerror(errno));
	ok = (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) ||
	     wrong(&j->w, "the call was not met again: status %d", status);
	/* Half of a write: that event may be there, as far as check() wants to know. */
	ok = ok && check_now(j, s, false, false, n);
	fs_load(&left, j->w.dir, j->w.pool);
	if (ok) {
		push_step(j, "run");
		ok = record(j, &next, &left, true);
		session_free(&next);
	}
	if (!ok)
		failed(j, &s->tape, n, (struct choice){TAKE_ALL, 0});
	else
		*end = '\0';
	fs_free(&left);
	return ok;
}

static bool explore_faults(struct job *j, struct session *s)
{
	unsigned step = j->thorough ? 1 + s->calls / 100 : 1 + s->calls / 6;
	bool ok = true;

	for (unsigned k = 1 + rng_below(&j->rng, step); ok && k <= s->calls; k += step) {
		struct fault f = {FAULT_FAIL, k, EIO, false};
		unsigned which = rng_below(&j->rng, 3);

		if (j->thorough || which == 0)
			ok = one_fault(j, &s->base, f);
		f.errnum = rng_one_in(&j->rng, 4) ? EDQUOT : ENOSPC;
		f.half = rng_one_in(&j->rng, 2);
		if (ok && (j->thorough || which == 1))
			ok = one_fault(j, &s->base, f);
		f = (struct fault){FAULT_KILL, k, 0, rng_one_in(&j->rng, 2)};
		if (ok && (j->thorough || which == 2))
			ok = one_kill(j, s, f);
	}
	return ok;
}

static void world_free(struct world *w)
{
	fs_free(&w->base);
	free(w->old);
	free(w->view);
	free(w->buf);
	free(w->op);
}

static void scenario_begin(struct job *j, const struct op *op, uint64_t seed,
			   const struct folder *f)
{
	memset(j, 0, sizeof(*j));
	j->op = op;
	j->seed = seed;
	j->w.dir = f->work;
	j->w.pool = f->pool;
	rng_seed(&j->w.rng, seed);
	rng_seed(&j->rng, seed + 1);
	op->build(&j->w);
	if (rng_one_in(&j->rng, 2))
		kept_plant(&j->w);
	j->thorough = rng_one_in(&j->rng, j->w.big || j->w.wide ? 40 : 10);
}

static bool scenario(struct job *j, const struct op *op, uint64_t seed, const struct folder *f)
{
	struct session s;
	bool ok;

	scenario_begin(j, op, seed, f);
	count.scenarios++;
	char *end = push_step(j, "run");

	ok = record(j, &s, &j->w.base, false) ||
	     failed(j, &s.tape, s.tape.n, (struct choice){TAKE_ALL, 0});
	ok = ok && explore_states(j, &s);
	if (ok) {
		*end = '\0';
		ok = explore_faults(j, &s);
	}
	session_free(&s);
	world_free(&j->w);
	return ok;
}

static unsigned long states(void)
{
	return count.prefixes + count.subsets + count.faults + count.kills + count.twice;
}

static double seconds_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool explore(struct job *j, const struct op *op, const struct arguments *a,
		    const struct folder *f)
{
	double began = seconds_now();
	struct rng r;

	memset(&count, 0, sizeof(count));
	kept_believed = 0;
	rng_seed(&r, a->seed ^ XXH3_64bits(op->name, strlen(op->name)));
	do
		if (!scenario(j, op, rng_next(&r) >> 16, f))
			return false;
	while ((states() < a->states || (a->kept && !kept_believed && states() < 20 * a->states)) &&
	       seconds_now() - began < (double)a->seconds);
	printf("ok: %s: %lu states (%lu prefixes, %lu subsets and torn writes, %lu failed calls, %lu kills, "
	       "%lu of a second crash) of %lu scenarios, finished %lu times, "
	       "%lu kept sums believed, %.1f s\n",
	       op->name, states(), count.prefixes, count.subsets, count.faults, count.kills,
	       count.twice, count.scenarios, count.again, kept_believed, seconds_now() - began);
	fflush(stdout);
	return true;
}

static struct fault parse_fault(const char *step, bool *plain)
{
	struct fault f = {FAULT_NONE, 0, EIO, false};
	char name[16] = "", *end = NULL;

	*plain = strcmp(step, "run") == 0;
	if (*plain)
		return f;
	if (sscanf(step, "fail%u.%15s", &f.at, name) == 2) {
		f.kind = FAULT_FAIL;
		end = strchr(name, 'h');
		if (end)
			*end = '\0';
		f.errnum = strcmp(name, "EIO") == 0	 ? EIO
			   : strcmp(name, "ENOSPC") == 0 ? ENOSPC
							 : EDQUOT;
	} else if (sscanf(step, "kill%u", &f.at) == 1) {
		f.kind = FAULT_KILL;
		end = strchr(step + 4, 'h');
	} else {
		die("no such step: %s", step);
	}
	f.half = end != NULL;
	return f;
}

static void parse_state(const char *step, unsigned *n, struct choice *c)
{
	char how;
	int got = sscanf(step, "%u.%c%" SCNx64, n, &how, &c->value);

	if (got < 2 || !strchr("a0mr", how))
		die("no such state: %s", step);
	c->how = how == 'a'   ? TAKE_ALL
		 : how == '0' ? TAKE_NONE
		 : how == 'm' ? TAKE_MASK
			      : TAKE_RANDOM;
}

/* One run and the state that is made of its recording, for each pair of steps. */
static bool replay_steps(struct job *j, char *steps)
{
	struct fs base;
	struct session s = {.ok = false};
	bool ok = true, plain, again = false;
	unsigned n = 0;

	fs_copy(&base, &j->w.base);
	for (char *step = strtok(steps, "/"); ok && step; step = strtok(NULL, "/")) {
		struct fault f = parse_fault(step, &plain);
		struct choice c = {TAKE_ALL, 0};

		session_free(&s);
		push_step(j, "%s", step);
		if (f.kind == FAULT_KILL) {
			ok = record(j, &s, &base, false) && one_kill(j, &s, f);
			break;
		}
		ok = plain ? record(j, &s, &base, again) : record_fault(j, &s, &base, f);
		again = true;
		n = s.tape.n;
		step = ok ? strtok(NULL, "/") : NULL;
		if (step) {
			parse_state(step, &n, &c);
			push_step(j, "%s", step);
			fs_free(&base);
			fs_replay(&base, &s.base, &s.tape, n, c);
			fs_store(&base, j->w.dir, j->w.pool);
			ok = check_now(j, &s, s.ok && n == s.tape.n, c.how != TAKE_ALL, n);
		}
		if (ok)
			tape_print(&s.tape, n, c);
		else
			failed(j, &s.tape, n, c);
		if (!step)
			break;
		j->w.unsure |= kept_removal_failed(&s.tape);
	}
	session_free(&s);
	fs_free(&base);
	return ok;
}

static const struct op *find_op(const char *name, size_t len)
{
	for (int i = 0; ops[i]; i++)
		if (strlen(ops[i]->name) == len && strncmp(ops[i]->name, name, len) == 0)
			return ops[i];
	die("no such operation: %.*s", (int)len, name);
}

static int replay(struct job *j, char *what, const struct folder *f)
{
	char *seed = strchr(what, ':'), *steps = seed ? strchr(seed + 1, ':') : NULL;
	bool ok;

	if (!steps)
		die("--replay=NAME:SEED:STEPS");
	scenario_begin(j, find_op(what, (size_t)(seed - what)), strtoull(seed + 1, NULL, 16), f);
	ok = replay_steps(j, steps + 1);
	printf("%s\n", ok ? "nothing is wrong" : "wrong");
	world_free(&j->w);
	return !ok;
}

static uint64_t fresh_seed(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return ((uint64_t)t.tv_sec * 1000003 ^ (uint64_t)t.tv_nsec ^ (uint64_t)getpid() << 24) &
	       0xffffffff;
}

/* Where syncs cost nothing. */
static void make_folder(struct folder *f, const char *parent)
{
	char real[PATH_MAX];

	if (!parent)
		parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
	if (!realpath(parent, real))
		die("%s: %s", parent, strerror(errno));
	snprintf(f->top, sizeof(f->top), "%.400s/explore.XXXXXX", real);
	if (!mkdtemp(f->top))
		die("%s: %s", f->top, strerror(errno));
	snprintf(f->work, sizeof(f->work), "%.480s/work", f->top);
	snprintf(f->pool, sizeof(f->pool), "%.480s/pool", f->top);
	if (mkdir(f->work, 0700) < 0 || mkdir(f->pool, 0700) < 0)
		die("%s: %s", f->top, strerror(errno));
}

static void remove_folder(struct folder *f)
{
	char aside[600];

	fs_empty(f->work);
	snprintf(aside, sizeof(aside), "%s/aside", f->work);
	rmdir(aside);
	fs_empty(f->pool);
	rmdir(f->work);
	rmdir(f->pool);
	rmdir(f->top);
}

static void usage(FILE *f)
{
	fputs("usage: explore [--op=NAME]... [--seed=HEX] [--states=N] [--kept]\n"
	      "               [--seconds=N] [--dir=DIR]\n"
	      "       explore --replay=NAME:SEED:STEPS [--dir=DIR]\n"
	      "operations:",
	      f);
	for (int i = 0; ops[i]; i++)
		fprintf(f, " %s", ops[i]->name);
	fputc('\n', f);
}

static void parse_arguments(struct arguments *a, int argc, char **argv)
{
	static const struct option options[] = {
		{"op", required_argument, NULL, 'o'},
		{"seed", required_argument, NULL, 's'},
		{"states", required_argument, NULL, 'n'},
		{"dir", required_argument, NULL, 'd'},
		{"seconds", required_argument, NULL, 't'},
		{"replay", required_argument, NULL, 'r'},
		{"kept", no_argument, NULL, 'k'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int opt;

	*a = (struct arguments){.seed = fresh_seed(), .states = 2000, .seconds = ULONG_MAX};
	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (opt == 'o' && a->n < 16)
			a->op[a->n++] = find_op(optarg, strlen(optarg));
		else if (opt == 's')
			a->seed = strtoull(optarg, NULL, 16);
		else if (opt == 'n')
			a->states = strtoul(optarg, NULL, 10);
		else if (opt == 'k')
			a->kept = true;
		else if (opt == 't')
			a->seconds = strtoul(optarg, NULL, 10);
		else if (opt == 'd')
			a->dir = optarg;
		else if (opt == 'r')
			a->replay = optarg;
		else {
			usage(opt == 'h' ? stdout : stderr);
			exit(opt == 'h' ? 0 : 64);
		}
	}
	for (int i = 0; a->n == 0 && ops[i]; i++)
		a->op[i] = ops[i];
}

int main(int argc, char **argv)
{
	struct job *j = malloc(sizeof(*j));
	struct arguments a;
	struct folder f;
	int rc = 0;

	parse_arguments(&a, argc, argv);
	/* States come and go: their memory need not come from the kernel, zeroed, each time. */
	mallopt(M_MMAP_THRESHOLD, 256 << 20);
	mallopt(M_TRIM_THRESHOLD, 512 << 20);
	make_folder(&f, a.dir);
	if (!j)
		die("out of memory");
	if (a.replay) {
		rc = replay(j, a.replay, &f);
	} else {
		printf("seed %" PRIx64 "\n", a.seed);
		for (int i = 0; a.op[i] && i < 16; i++)
			rc |= !explore(j, a.op[i], &a, &f);
	}
	remove_folder(&f);
	free(j);
	return rc;
}
