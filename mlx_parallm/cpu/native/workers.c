/* See workers.h.

   Threads that wait for each other by spinning collapse where one of them has no core: it does
   not get one before the others' time is up, and then the next one has none. So here
   - chunks are taken from a common counter: a thread that gets no core takes none, and the
     others do its share; only a chunk that it has begun must be waited for;
   - nobody spins for longer than it takes to wake a thread; then it sleeps on a futex;
   - helpers keep off the caller's core, where the kernel likes to wake them, since their waker
     runs there. */
#define _GNU_SOURCE
#include "workers.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 256 };
static const int64_t SPIN_NS = 20000; /* about as long as a wake-up takes */

typedef struct {
    _Alignas(64) _Atomic uint32_t wake; /* the generation to look at; a futex */
    _Atomic int asleep;
    _Atomic pid_t id;
    int cpu_left_free; /* the caller's CPU that this helper keeps off, or -1 */
} helper_state;

/* The job that is shared now. The counter holds generation, chunks and the next chunk in one
   word, so that a late helper cannot take a chunk of a job that it does not know. */
static _Alignas(64) _Atomic uint64_t counter;
static _Alignas(64) _Atomic uint32_t ended;
static _Atomic int caller_asleep;
static chunk_function job_run;
static const void *job_data;

static helper_state helpers[MOST_THREADS - 1];
static int started; /* helpers that exist */
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;

static _Atomic int threads = 1;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void futex_sleep(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Spin while *word == value; whether it changed in time. */
static int changes_soon(_Atomic uint32_t *word, uint32_t value) {
    int64_t until = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value) return 1;
            _mm_pause();
        }
    } while (now_ns() < until);
    return 0;
}

/* Take chunks of this generation until there are none. */
static void work(uint32_t generation) {
    uint64_t seen = atomic_load_explicit(&counter, memory_order_acquire);
    while ((uint32_t)(seen >> 32) == generation) {
        uint32_t chunks = (seen >> 16) & 0xffff, next = seen & 0xffff;
        if (next >= chunks) break;
        if (!atomic_compare_exchange_weak(&counter, &seen, seen + 1)) continue;
        job_run(job_data, (int)next);
        if (atomic_fetch_add(&ended, 1) + 1 == chunks && atomic_load(&caller_asleep))
            futex_wake(&ended);
        seen = atomic_load_explicit(&counter, memory_order_acquire);
    }
}

static void *help(void *argument) {
    helper_state *me = argument;
    uint32_t generation = 0;
    me->id = (pid_t)syscall(SYS_gettid);
    for (;;) {
        if (!changes_soon(&me->wake, generation)) {
            atomic_store(&me->asleep, 1);
            while (atomic_load(&me->wake) == generation) futex_sleep(&me->wake, generation);
            atomic_store(&me->asleep, 0);
        }
        generation = atomic_load(&me->wake);
        work(generation);
    }
    return NULL;
}

static void start_helpers(int wanted) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the program's own threads */
    for (; started < wanted; started++) {
        pthread_t thread;
        helpers[started].cpu_left_free = -1;
        if (pthread_create(&thread, NULL, help, &helpers[started])) break;
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void keep_off(helper_state *helper, int cpu) {
    cpu_set_t allowed;
    if (helper->cpu_left_free == cpu || !helper->id) return;
    helper->cpu_left_free = cpu;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    if (CPU_COUNT(&allowed) > 1 && CPU_ISSET(cpu, &allowed)) CPU_CLR(cpu, &allowed);
    sched_setaffinity(helper->id, sizeof allowed, &allowed);
}

static void call_helpers(uint32_t generation, int wanted) {
    int cpu = sched_getcpu();
    for (int i = 0; i < wanted && i < started; i++) {
        keep_off(&helpers[i], cpu);
        atomic_store(&helpers[i].wake, generation);
        if (atomic_load(&helpers[i].asleep)) futex_wake(&helpers[i].wake);
    }
}

static void wait_for_end(uint32_t chunks) {
    uint32_t done;
    while ((done = atomic_load_explicit(&ended, memory_order_acquire)) != chunks) {
        if (changes_soon(&ended, done)) continue;
        atomic_store(&caller_asleep, 1);
        /* The last one wakes us; one that is not the last changes the word, so look again. */
        if (atomic_load(&ended) == done) futex_sleep(&ended, done);
        atomic_store(&caller_asleep, 0);
    }
}

static void run_alone(chunk_function run, const void *job, int chunks) {
    for (int i = 0; i < chunks; i++) run(job, i);
}

static void run_shared(chunk_function run, const void *job, int chunks, int helping) {
    uint32_t generation = (uint32_t)(atomic_load(&counter) >> 32) + 1;
    if (generation == 0) generation = 1; /* 0 is where helpers begin */
    job_run = run;
    job_data = job;
    atomic_store(&ended, 0);
    atomic_store(&counter, (uint64_t)generation << 32 | (uint64_t)chunks << 16);
    call_helpers(generation, helping);
    work(generation);
    wait_for_end((uint32_t)chunks);
}

void workers_run(chunk_function run, const void *job, int chunks) {
    int helping = workers_count() - 1;
    if (helping > chunks - 1) helping = chunks - 1;
    if (helping < 1 || chunks > 0xffff || pthread_mutex_trylock(&owner)) {
        run_alone(run, job, chunks);
        return;
    }
    if (started < helping) start_helpers(helping);
    run_shared(run, job, chunks, helping);
    pthread_mutex_unlock(&owner);
}

void workers_set(int n) { atomic_store(&threads, n < 1 ? 1 : n > MOST_THREADS ? MOST_THREADS : n); }

int workers_count(void) { return atomic_load(&threads); }

/* A forked child has none of the helpers, and must not find the mutex held by a thread that it
   does not have. */
static void before_fork(void) { pthread_mutex_lock(&owner); }
static void in_parent(void) { pthread_mutex_unlock(&owner); }
static void in_child(void) {
    started = 0;
    for (int i = 0; i < MOST_THREADS - 1; i++) {
        helpers[i].wake = 0;
        helpers[i].asleep = 0;
        helpers[i].id = 0;
    }
    pthread_mutex_unlock(&owner);
}

__attribute__((constructor)) static void prepare(void) {
    pthread_atfork(before_fork, in_parent, in_child);
}
