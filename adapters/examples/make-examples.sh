#!/bin/sh
# Makes every file of this folder again: speech from espeak-ng and flite, sounds from noise and sines. Nothing is
# recorded, nothing is copied. Needs espeak-ng, flite, sox and ffmpeg (Debian: apt install espeak-ng flite sox ffmpeg).
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# encode NAME.EXT [ffmpeg's options]: the file's own format, from the take at $tmp/NAME.wav
encode() {
    file=$1
    shift
    ffmpeg -nostdin -v error -y -i "$tmp/${file%.*}.wav" -map_metadata -1 -fflags +bitexact -flags +bitexact "$@" "$file"
}

# say NAME VOICE PITCH SPEED TEXT: speech of espeak-ng
say() {
    espeak-ng -v "$2" -p "$3" -s "$4" -w "$tmp/raw.wav" -- "$5"
    trim "$1"
}

# utter NAME VOICE TEXT: speech of flite
utter() {
    flite -voice "$2" -t "$3" -o "$tmp/raw.wav"
    trim "$1"
}

# trim NAME: silences trimmed, a moment of them put back, -3 dB at most
trim() {
    sox -R "$tmp/raw.wav" -r 16000 -c 1 "$tmp/$1.wav" silence 1 0.01 1% reverse silence 1 0.01 1% reverse \
        pad "${pad:-0.2}" "${pad:-0.2}" gain -n -3 dither -S
}

# sound NAME SECONDS EXPRESSION [sox's effects]: ffmpeg's aevalsrc, where t is the time in seconds and random(i) is seeded noise
sound() {
    ffmpeg -nostdin -v error -y -f lavfi -i "aevalsrc=exprs='0.2*($3)':s=16000:d=$2" "$tmp/raw.wav"
    # shellcheck disable=SC2086  # the effects are several words
    sox -R "$tmp/raw.wav" -b 16 "$tmp/$1.wav" ${4:-} gain -n -3 dither
}

# Arabic commands (the labels of the `keywords` adapter are their English translations)
say keyword-yes   ar    45 140 'نعم';   encode keyword-yes.wav
say keyword-left  ar    55 130 'يسار';  encode keyword-left.flac
say keyword-zero  ar+f3 50 140 'صفر';   encode keyword-zero.ogg  -c:a libvorbis -q:a 4
say keyword-three ar    40 130 'ثلاثة'; encode keyword-three.mp3 -b:a 64k

# English digits, at the 8 kHz of telephony, as the recordings that the `digits` adapter learned from
pad=0.05
say digit-three en-us    45 140 three; encode digit-three.wav  -ar 8000
say digit-five  en-gb    35 130 five;  encode digit-five.opus  -c:a libopus -b:a 24k
say digit-seven en-us+f2 60 140 seven; encode digit-seven.m4a  -c:a aac -b:a 64k
say digit-eight en-us+m3 50 150 eight; encode digit-eight.flac -ar 8000

# Three made-up speakers, two sentences each
pad=0.1
utter speaker-ann-1   slt 'The weather was warm, so we walked along the river until evening.'
utter speaker-ann-2   slt 'Please remember to bring the tickets and a bottle of water.'
utter speaker-brian-1 kal 'Please remember to bring the tickets and a bottle of water.'
utter speaker-brian-2 kal 'The weather was warm, so we walked along the river until evening.'
say   speaker-cora-1  en-us+f2 50 175 'The weather was warm, so we walked along the river until evening.'
say   speaker-cora-2  en-us+f2 50 175 'Please remember to bring the tickets and a bottle of water.'
encode speaker-ann-1.ogg    -c:a libvorbis -q:a 4
encode speaker-ann-2.opus   -c:a libopus -b:a 32k
encode speaker-brian-1.mp3  -b:a 64k
encode speaker-brian-2.webm -c:a libopus -b:a 32k
encode speaker-cora-1.ogg     -c:a libvorbis -q:a 4
encode speaker-cora-2.m4a   -c:a aac -b:a 64k

# Sound events of five seconds
# rain: steady hiss, and a drop wherever a slow random number passes its threshold
sound rain 5 '0.25*(random(0)-0.5)+0.6*(random(1)-0.5)*gt(random(2),0.998)' 'highpass 400 treble 4'
# a clock: two ticks a second, the second of each pair lower
sound clock-tick 5 'exp(-mod(t,0.5)*180)*sin(2*PI*if(lt(mod(t,1),0.5),3100,2500)*t)+0.5*exp(-mod(t,0.5)*400)*(random(0)-0.5)+0.001*(random(1)-0.5)'
# a helicopter: noise and a low tone, chopped eleven times a second
sound helicopter 5 '(0.2+pow(abs(sin(PI*11*t)),6))*(0.7*(random(0)-0.5)+0.4*sin(2*PI*66*t)+0.2*sin(2*PI*132*t))' 'lowpass 1500 bass 6'
# a chainsaw: a rough sawtooth engine whose speed wanders, with a metallic hiss
sound chainsaw 5 '(0.6+0.4*sin(2*PI*0.6*t))*((2*mod(95*t+6*sin(2*PI*0.4*t),1)-1)+0.7*(2*mod(190*t+12*sin(2*PI*0.4*t),1)-1)+0.8*(random(0)-0.5))' 'gain -n -3 overdrive 20 gain -9 highpass 120'
# a dog: four barks, each a falling growl of harmonics with breath in it
sound dog 3 'exp(-pow((mod(t,0.9)-0.12)/0.07,2))*((2*mod(520*t-90*pow(mod(t,0.9),2),1)-1)*(0.6+0.4*sin(2*PI*70*t))+0.5*(random(0)-0.5))+0.0005*(random(1)-0.5)' 'bandpass 900 1.5q'
# waves: noise that swells every two and a half seconds
sound sea-waves 5 '(0.15+pow(sin(PI*t/2.5),4))*(random(0)-0.5)' 'lowpass 2500'
encode rain.mp3         -b:a 64k
encode clock-tick.ogg   -c:a libvorbis -q:a 3
encode helicopter.m4a   -c:a aac -b:a 64k
encode chainsaw.webm    -c:a libopus -b:a 48k
encode dog.flac
encode sea-waves.opus   -c:a libopus -b:a 48k

# Music, where MUSIC names the set that `python -m tests.music` made
if [ -n "${MUSIC:-}" ]; then
    for style in dance madrigal; do
        cp "$MUSIC/clips/$style-report-003.flac" "$tmp/raw.flac"
        sox "$tmp/raw.flac" "$tmp/music-$style.wav"
        encode "music-$style.opus" -c:a libopus -b:a 24k
    done
fi
